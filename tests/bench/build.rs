//! Records the compiler, since the numbers are its numbers, too.

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = std::process::Command::new(rustc).arg("--version").output();
    let version = version.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    println!("cargo::rustc-env=HVL_RUSTC={}", version.as_deref().map_or("rustc unknown", str::trim));
    println!("cargo::rerun-if-changed=build.rs");
}

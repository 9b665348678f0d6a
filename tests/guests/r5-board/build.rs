//! Puts `memory.x` where the linker script of aarch32-rt includes it from.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=memory.x");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    fs::copy("memory.x", out.join("memory.x"))
        .expect("memory.x lies beside build.rs and OUT_DIR is writable");
    println!("cargo:rustc-link-search={}", out.display());
}

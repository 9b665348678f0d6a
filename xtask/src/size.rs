//! `cargo xtask size`: what firmware pays for the link.
//!
//! Images are linked which differ in nothing but the link with a console and entropy, or with all devices; the
//! difference of their text (code and constants, what `size` calls text) is the price. All have the compiler's `memcpy`,
//! which any firmware has.
//! A heap would show as a symbol of the allocator.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
use std::{fs, path::Path};

use crate::{paths, process, setup};

/// Console and entropy with ring and link, in bytes of text on armv7r.
const LIMIT: u64 = 8 * 1024;
/// Console, entropy, network, sockets and files with ring and link, likewise. The goal is 32 KiB.
const LIMIT_ALL: u64 = 40 * 1024;

/// The board alone. What moves into it is not in the difference, so it must not grow unseen.
const LIMIT_BOARD: u64 = 3900;

/// Options of `cargo xtask size`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Also list the largest functions of the image with the link.
    #[arg(long)]
    functions: bool,
}

/// Bytes of an image by what becomes of them.
struct Image {
    text: u64,
    data: u64,
    bss: u64,
}

/// The sections that are loaded or reserved; debugging information is neither.
fn measure(path: &Path) -> Result<Image> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF file", path.display()))?;
    let mut image = Image { text: 0, data: 0, bss: 0 };
    for section in file.sections() {
        match section.kind() {
            SectionKind::Text | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => {
                image.text += section.size()
            }
            SectionKind::Data => image.data += section.size(),
            SectionKind::UninitializedData => image.bss += section.size(),
            _ => {}
        }
    }
    if let Some(symbol) =
        file.symbols().find(|symbol| symbol.name().is_ok_and(|name| name.contains("__rust_alloc")))
    {
        bail!("{} has a heap: {}", path.display(), symbol.name().unwrap_or("?"));
    }
    Ok(image)
}

fn print_functions(path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    let file = object::File::parse(&*bytes)?;
    let mut functions: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.size() > 100)
        .map(|symbol| (symbol.size(), symbol.name().unwrap_or("?").to_owned()))
        .collect();
    functions.sort_unstable_by(|a, b| b.cmp(a));
    for (size, name) in functions.iter().take(40) {
        println!("{size:6}  {:#}", rustc_demangle::demangle(name));
    }
    Ok(())
}

/// Builds the images, prints the sizes, and fails above a limit.
pub fn run(options: &Options) -> Result<()> {
    let toolchain = setup::toolchain()?;
    process::run(toolchain.cargo("build").args([
        "--quiet",
        "--release",
        "--package",
        "r5-size",
        "--package",
        "r5-shell",
    ]))?;
    let image = |name| paths::firmware_target().join(setup::TARGET).join("release").join(name);
    let (base, link) = (measure(&image("size-base"))?, measure(&image("size-link"))?);
    // The shell has smoltcp in it, which has no heap either.
    let (all, shell) = (measure(&image("size-all"))?, measure(&image("r5-shell"))?);
    println!("{:44} {:>8} {:>8} {:>8}", "armv7r-none-eabihf, Thumb, opt-level s", "text", "data", "bss");
    for (name, image) in [
        ("board alone", &base),
        ("board, link, console, rng", &link),
        ("board, link, all five devices", &all),
        ("r5-shell, with a network stack", &shell),
    ] {
        println!("{name:44} {:8} {:8} {:8}", image.text, image.data, image.bss);
    }
    if options.functions {
        print_functions(&image("size-all"))?;
    }
    let mut above = Vec::new();
    if base.text > LIMIT_BOARD {
        above.push(format!("the board alone takes {} bytes of text; the limit is {LIMIT_BOARD}", base.text));
    }
    for (name, image, limit) in [("console + rng", &link, LIMIT), ("all five drivers", &all, LIMIT_ALL)] {
        let price = image.text.saturating_sub(base.text);
        println!("{name} with ring and link: {price} of {limit} bytes of text, no heap");
        let loaded = image.data.saturating_sub(base.data);
        if loaded != 0 {
            above.push(format!(
                "{name} have {loaded} bytes of data that is loaded: their storage is not all zeros"
            ));
        }
        if price > limit {
            above.push(format!("{name} with ring and link take {price} bytes of text; the limit is {limit}"));
        }
    }
    if !above.is_empty() {
        bail!("{}", above.join("; "));
    }
    Ok(())
}

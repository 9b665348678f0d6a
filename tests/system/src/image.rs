//! What a machine starts from: an archive that the kernel unpacks into its first and only file system, which is memory.

use anyhow::{Context, Result};
use cpio::newc::{self, Builder};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use super::distribution::{self, Distribution, Module};

/// The first process. Its last line is what `machine::run` waits for.
const INIT: &str = include_str!("init.sh");

/// A path inside that says which modules are loaded, in their order.
const MODULES: &str = "modules/order";

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

enum Node {
    Folder,
    File { data: Vec<u8>, mode: u32 },
}

/// An archive that is being put together.
pub struct Image<'a> {
    distribution: &'a Distribution,
    /// By path inside, without the leading slash; folders stand before what is in them.
    nodes: BTreeMap<String, Node>,
    modules: Vec<String>,
}

impl<'a> Image<'a> {
    /// One with a shell and its small tools, which runs `script` in it, as root.
    pub fn new(distribution: &'a Distribution, script: &str) -> Result<Self> {
        let mut image = Self { distribution, nodes: BTreeMap::new(), modules: Vec::new() };
        for folder in ["proc", "sys", "dev", "tmp", "mnt"] {
            image.nodes.insert(folder.into(), Node::Folder);
        }
        image.data("init", INIT.as_bytes(), 0o755);
        image.data("script", script.as_bytes(), 0o755);
        image.program("busybox")?;
        Ok(image)
    }

    /// Adds a program of the distribution, with all its libraries; it is found on PATH.
    pub fn program(&mut self, name: &str) -> Result<()> {
        let path = self.distribution.program(name)?;
        self.file(&format!("bin/{name}"), &path)
    }

    /// Adds an executable file, at this path inside, and the libraries that it needs.
    pub fn file(&mut self, inside: &str, path: &Path) -> Result<()> {
        if self.nodes.contains_key(inside) {
            return Ok(());
        }
        let data = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        self.data(inside, &data, 0o755);
        let needs = distribution::needs(path)?;
        if let Some(loader) = &needs.loader {
            let (_, name) = loader.rsplit_once('/').with_context(|| format!("{loader} is no path"))?;
            self.file(loader.trim_start_matches('/'), &self.distribution.library(name)?)?;
        }
        for library in &needs.libraries {
            self.file(&format!("lib/{library}"), &self.distribution.library(library)?)?;
        }
        Ok(())
    }

    /// Adds a kernel module and all that it needs; they are loaded before the script runs.
    pub fn module(&mut self, name: &str) -> Result<()> {
        if self.modules.iter().any(|loaded| loaded == name) {
            return Ok(());
        }
        let Module::Loadable { data, needs } = self.distribution.module(name)? else { return Ok(()) };
        for need in needs {
            self.module(&need)?;
        }
        self.data(&format!("modules/{name}.ko"), &data, 0o644);
        self.modules.push(name.into());
        Ok(())
    }

    fn data(&mut self, inside: &str, data: &[u8], mode: u32) {
        for (end, _) in inside.match_indices('/') {
            self.nodes.entry(inside[..end].into()).or_insert(Node::Folder);
        }
        self.nodes.insert(inside.into(), Node::File { data: data.into(), mode });
    }

    /// Writes the archive.
    pub fn write(mut self, path: &Path) -> Result<()> {
        let order: String = self.modules.iter().map(|name| format!("{name}\n")).collect();
        self.data(MODULES, order.as_bytes(), 0o644);
        let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
        let mut out = BufWriter::new(file);
        for (number, (name, node)) in (1..).zip(&self.nodes) {
            let (data, mode) = match node {
                Node::Folder => (&[][..], FOLDER | 0o755),
                Node::File { data, mode } => (data.as_slice(), REGULAR | mode),
            };
            let length = u32::try_from(data.len()).with_context(|| format!("{name} has 4 GiB or more"))?;
            let mut entry = Builder::new(name).ino(number).nlink(1).mode(mode).write(&mut out, length);
            entry.write_all(data)?;
            entry.finish()?;
        }
        newc::trailer(&mut out)?;
        out.flush().with_context(|| format!("{} cannot be written; is the disk full?", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A distribution of empty programs whose modules say what they need.
    fn distribution(name: &str) -> Distribution {
        let root = std::env::temp_dir().join(format!("hvl-system-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let modules = root.join("usr/lib/modules/1");
        for folder in [&root.join("boot"), &root.join("usr/bin"), &modules.join("kernel")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(root.join("boot/vmlinuz-1"), "").unwrap();
        fs::write(root.join("usr/bin/busybox"), "").unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/drivers/bus-one.ko\n").unwrap();
        for (name, needs) in [("top", "mid-dle,bottom"), ("mid-dle", "bottom"), ("bottom", "")] {
            let text = format!("ELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(modules.join(format!("kernel/{name}.ko")), text).unwrap();
        }
        Distribution::at(&root).unwrap()
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let distribution = distribution("modules");
        let mut image = Image::new(&distribution, "").unwrap();
        image.module("top").unwrap();
        image.module("bus_one").unwrap();
        assert_eq!(image.modules, ["bottom", "mid-dle", "top"]);
        let refusal = image.module("other").unwrap_err().to_string();
        assert!(refusal.ends_with("has no module other"), "{refusal}");
    }
}

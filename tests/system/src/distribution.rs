//! Where a machine's parts come from: a folder into which packages of a distribution are unpacked, not installed. Nothing
//! of it was ever configured, so what a package's scripts would have made (the index of modules, the cache of libraries)
//! is worked out here.

use anyhow::{Context, Result, bail, ensure};
use object::{
    LittleEndian, elf,
    read::elf::{Dyn, FileHeader, ProgramHeader},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// An unpacked distribution with one kernel.
pub struct Distribution {
    root: PathBuf,
    kernel: PathBuf,
    /// Kernel modules by name.
    modules: BTreeMap<String, PathBuf>,
    /// Names of those that are part of the kernel's image.
    built_in: BTreeSet<String>,
}

/// A kernel module.
pub(crate) enum Module {
    /// Part of the kernel.
    BuiltIn,
    /// To be loaded.
    Loadable {
        /// The file, not compressed.
        data: Vec<u8>,
        /// The names of those that it needs.
        needs: Vec<String>,
    },
}

/// What a program needs beside itself.
#[derive(Default)]
pub(crate) struct Needs {
    /// The dynamic loader, by the path that the program calls it by.
    pub(crate) loader: Option<String>,
    /// Libraries by name.
    pub(crate) libraries: Vec<String>,
}

impl Distribution {
    /// The one that lies in `root`, with its only kernel.
    pub fn at(root: &Path) -> Result<Self> {
        let mut kernels = Vec::new();
        let boot = root.join("boot");
        for entry in fs::read_dir(&boot).with_context(|| format!("{} cannot be read", boot.display()))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")) {
                kernels.push(path);
            }
        }
        ensure!(kernels.len() == 1, "{} has {} kernels, not one", boot.display(), kernels.len());
        let (mut modules, mut built_in) = (BTreeMap::new(), BTreeSet::new());
        find_modules(&root.join("usr/lib/modules"), &mut modules, &mut built_in)?;
        Ok(Self { root: root.to_owned(), kernel: kernels.remove(0), modules, built_in })
    }

    /// The kernel's image.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// A program by its name.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        ["usr/bin", "usr/sbin"]
            .iter()
            .map(|folder| self.root.join(folder).join(name))
            .find(|path| path.exists())
            .with_context(|| format!("{} has no program {name}", self.root.display()))
    }

    /// A library by its name.
    pub(crate) fn library(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join("usr/lib/x86_64-linux-gnu").join(name);
        ensure!(path.exists(), "{} is missing", path.display());
        Ok(path)
    }

    /// A kernel module by its name.
    pub(crate) fn module(&self, name: &str) -> Result<Module> {
        let known = module_name(name);
        let Some(path) = self.modules.get(&known) else {
            ensure!(self.built_in.contains(&known), "{} has no module {name}", self.kernel.display());
            return Ok(Module::BuiltIn);
        };
        let data = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => self.unpack(path)?,
            _ => fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?,
        };
        // The compiler leaves `key=value`, each with a zero byte behind it.
        let needs = data
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(b"depends="))
            .with_context(|| format!("{} does not say what it depends on", path.display()))?;
        let needs = String::from_utf8_lossy(needs).into_owned();
        let needs = needs.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Ok(Module::Loadable { data, needs })
    }

    fn unpack(&self, path: &Path) -> Result<Vec<u8>> {
        // Its own: this machine need not have the program.
        let output = Command::new(self.program("busybox")?)
            .arg("xzcat")
            .arg(path)
            .stdin(Stdio::null())
            .output()
            .context("the distribution's busybox cannot be started")?;
        if !output.status.success() {
            bail!("{}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout)
    }
}

/// The kernel takes both for the same.
fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

fn find_modules(
    folder: &Path,
    modules: &mut BTreeMap<String, PathBuf>,
    built_in: &mut BTreeSet<String>,
) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            find_modules(&path, modules, built_in)?;
        } else if name == "modules.builtin" {
            // Paths, one a line.
            let list = fs::read_to_string(&path)?;
            let names = list.lines().filter_map(|line| Path::new(line).file_stem()?.to_str());
            built_in.extend(names.map(module_name));
        } else if let Some((name, _)) = name.split_once(".ko") {
            modules.insert(module_name(name), path);
        }
    }
    Ok(())
}

/// What an ELF file needs; nothing if it is a static program or none at all (a script).
pub(crate) fn needs(path: &Path) -> Result<Needs> {
    let data = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut needs = Needs::default();
    let data = data.as_slice();
    let Ok(header) = elf::FileHeader64::<LittleEndian>::parse(data) else { return Ok(needs) };
    let endian = header.endian()?;
    for segment in header.program_headers(endian, data)? {
        if let Some(loader) = segment.interpreter(endian, data)? {
            needs.loader = Some(String::from_utf8_lossy(loader).into_owned());
        }
    }
    let sections = header.sections(endian, data)?;
    if let Some((entries, strings)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, strings)?;
        for entry in entries.iter().filter(|entry| entry.tag32(endian) == Some(elf::DT_NEEDED)) {
            needs.libraries.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
        }
    }
    Ok(needs)
}

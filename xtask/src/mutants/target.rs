//! Finds the build target that holds a test: a package of ten test programs takes minutes to build, one of them seconds.

use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::files;

/// The Rust sources of every package of a tree, by the package's name.
pub struct Sources(BTreeMap<String, Vec<Source>>);

struct Source {
    /// What cargo is to be asked for so that this file is built: `--lib`, or `--test=NAME`.
    target: String,
    text: String,
}

impl Sources {
    /// Reads those of a working tree.
    pub fn read(root: &Path) -> Result<Self> {
        let files: Vec<PathBuf> = files(root)?.into_iter().map(PathBuf::from).collect();
        let mut packages = BTreeMap::new();
        for manifest in files.iter().filter(|file| file.ends_with("Cargo.toml")) {
            let Some(name) = package(&root.join(manifest))? else { continue };
            let folder = manifest.parent().context("a manifest lies in a folder")?;
            let mut sources = Vec::new();
            for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "rs")) {
                let Ok(file) = file.strip_prefix(folder) else { continue };
                let Some(target) = target(file) else { continue };
                let path = root.join(folder).join(file);
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("{} cannot be read", path.display()))?;
                sources.push(Source { target, text });
            }
            packages.insert(name, sources);
        }
        Ok(Self(packages))
    }

    /// Returns cargo's options for the targets of `package` in which a test has `test` in its name.
    pub fn targets(&self, package: &str, test: &str) -> Result<Vec<String>> {
        let Some(sources) = self.0.get(package) else { bail!("there is no package {package}") };
        // In the path of a test, the last part that says something: `p9::tests::` means all of a module.
        let part =
            test.split("::").filter(|part| !part.is_empty() && *part != "tests").last().unwrap_or(test);
        let module = format!("mod {part}");
        let holds =
            |line: &str| line.contains(&module) || function(line).is_some_and(|name| name.contains(part));
        let found: BTreeSet<_> = sources
            .iter()
            .filter(|file| file.text.lines().any(holds))
            .map(|file| file.target.clone())
            .collect();
        if found.is_empty() {
            bail!("{package} has no test `{test}`");
        }
        Ok(found.into_iter().collect())
    }
}

/// The name of the package that a manifest describes; a workspace describes none.
fn package(manifest: &Path) -> Result<Option<String>> {
    let text =
        fs::read_to_string(manifest).with_context(|| format!("{} cannot be read", manifest.display()))?;
    let table: toml::Table =
        toml::from_str(&text).with_context(|| format!("{} is no manifest", manifest.display()))?;
    Ok(table.get("package").and_then(|package| package.get("name")?.as_str()).map(str::to_owned))
}

/// Where in its package a file is built.
fn target(file: &Path) -> Option<String> {
    let mut parts = file.iter().filter_map(|part| part.to_str());
    match (parts.next()?, parts.next()?) {
        ("src", "main.rs") => Some("--bins".to_owned()),
        ("src", _) => Some("--lib".to_owned()),
        ("tests", name) => Some(format!("--test={}", name.trim_end_matches(".rs"))),
        _ => None,
    }
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let rest =
        line.trim_start().strip_prefix("fn ").or_else(|| line.split_once(" fn ").map(|(_, rest)| rest))?;
    rest.split(['(', '<']).next()
}

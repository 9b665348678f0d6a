//! git: many small files, locks by exclusive creation and renames, packs that are read through mappings.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::{Told, place::Place};

const COMMITS: usize = 12;
const FILES: usize = 8;
/// The repository that is cloned: local, and made anew for each place.
const ORIGIN: &str = "/tmp/origin";

/// git in `folder`, with nothing of the machine's in it, so that every object has the same name everywhere.
fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "Nobody")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "nobody@example.org")))
        .stdin(Stdio::null())
        .output()
        .context("git cannot be started")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}: {complaint}", arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn commit(folder: &Path, message: &str) -> Result<()> {
    git(folder, &["add", "--all"])?;
    git(folder, &["commit", "--quiet", "-m", message]).map(drop)
}

pub fn run(place: &Place, told: &mut Told) -> Result<()> {
    let origin = Path::new(ORIGIN);
    if origin.exists() {
        fs::remove_dir_all(origin)?;
    }
    fs::create_dir(origin)?;
    git(origin, &["init", "--quiet", "--initial-branch=main"])?;
    for number in 0..COMMITS {
        for file in 0..FILES {
            let folder = origin.join(format!("folder {}", file % 3));
            fs::create_dir_all(&folder)?;
            let bytes: Vec<u8> = (0..fastrand::usize(100..5000)).map(|_| fastrand::u8(b' '..b'z')).collect();
            fs::write(folder.join(format!("file {file}")), bytes)?;
        }
        commit(origin, &format!("Number {number}"))?;
    }
    let url = format!("file://{ORIGIN}");
    let clone = place.folder.join("clone");
    // There is one git, under one name; the far end's command would be another.
    git(&place.folder, &["clone", "--quiet", "--upload-pack=git upload-pack", &url, "clone"])?;
    told.same(git(&clone, &["status", "--porcelain"])?);
    git(&clone, &["switch", "--quiet", "--create", "topic", "main~3"])?;
    fs::write(clone.join("new file"), "of the topic\n")?;
    commit(&clone, "On the topic")?;
    git(&clone, &["switch", "--quiet", "main"])?;
    git(&clone, &["merge", "--quiet", "--no-edit", "topic"])?;
    git(&clone, &["gc", "--quiet", "--prune=now"])?;
    told.same(git(&clone, &["fsck", "--full", "--strict", "--no-progress"])?);
    told.same(
        git(&clone, &["count-objects", "-v"])?
            .lines()
            .filter(|line| !line.starts_with("size"))
            .collect::<Vec<_>>()
            .join(", "),
    );
    told.same(git(&clone, &["log", "--all", "--format=%H %s"])?);
    told.same(git(&clone, &["status", "--porcelain"])?);
    git(&clone, &["push", "--quiet", "--receive-pack=git receive-pack", "origin", "topic"])?;
    told.same(git(origin, &["rev-parse", "topic", "main^{tree}"])?);
    told.done = format!("a clone of {COMMITS} commits, a branch, a merge, gc, fsck, push");
    Ok(())
}

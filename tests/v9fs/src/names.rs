//! Names, and what the kernel answers when one cannot be had: the errors that programs decide by.

use anyhow::{Result, ensure};
use std::{
    fmt::Display,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
};

use crate::{Told, place::Place};

/// Of a directory that is emptied.
const ENTRIES: usize = 200;

/// What came of a call, without the path that std would add.
pub fn outcome<T: Display>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => match error.raw_os_error() {
            Some(code) => format!("errno {code}"),
            None => error.to_string(),
        },
    }
}

fn done(result: io::Result<()>) -> String {
    outcome(result.map(|()| "done"))
}

pub fn run(place: &Place, told: &mut Told) -> Result<()> {
    let at = |name: &str| -> PathBuf { place.folder.join(name) };
    fs::write(at("file"), "one")?;
    fs::create_dir_all(at("full/inside"))?;
    fs::create_dir(at("empty"))?;
    let (longest, too_long) = ("n".repeat(255), "n".repeat(256));
    let mut count = 0;
    let mut step = |what: &str, answer: String| {
        count += 1;
        told.same(format!("{what}: {answer}"));
    };
    let exclusive = File::options().write(true).create_new(true).open(at("file"));
    step("create what exists", outcome(exclusive.map(|_| "opened")));
    step("mkdir what exists", done(fs::create_dir(at("empty"))));
    step("mkdir over a file", done(fs::create_dir(at("file"))));
    step("mkdir in what is missing", done(fs::create_dir(at("missing/child"))));
    step("mkdir in a file", done(fs::create_dir(at("file/child"))));
    step("unlink a directory", done(fs::remove_file(at("empty"))));
    step("unlink what is missing", done(fs::remove_file(at("missing"))));
    step("rmdir a file", done(fs::remove_dir(at("file"))));
    step("rmdir what is full", done(fs::remove_dir(at("full"))));
    step("rename over a full directory", done(fs::rename(at("empty"), at("full"))));
    step("rename a directory over a file", done(fs::rename(at("empty"), at("file"))));
    step("rename a file over a directory", done(fs::rename(at("file"), at("empty"))));
    step("rename into itself", done(fs::rename(at("full"), at("full/inside/again"))));
    step("rename what is missing", done(fs::rename(at("missing"), at("other"))));
    step("rename over an empty directory", done(fs::rename(at("full"), at("empty"))));
    step("what became of it", outcome(fs::metadata(at("empty/inside")).map(|inside| inside.is_dir())));
    step("read a directory", outcome(File::open(at("empty")).and_then(|mut file| file.read(&mut [0; 8]))));
    step("write a directory", outcome(File::options().write(true).open(at("empty")).map(|_| "opened")));
    step("the longest name", done(fs::write(at(&longest), "long")));
    step("a longer one", done(fs::write(at(&too_long), "long")));
    step("a name of bytes", done(fs::write(at("new\nline \u{fffd} \\ \"quoted\""), "odd")));
    step("a loop of links", done(symlink("loop", at("loop"))));
    step("opened", outcome(File::open(at("loop")).map(|_| "opened")));
    step("a link to nothing", done(symlink("nowhere", at("dangling"))));
    step("written through", done(fs::write(at("dangling"), "through")));
    step("what is there", outcome(fs::read_to_string(at("nowhere"))));
    step("a link's own text", outcome(fs::read_link(at("dangling")).map(|path| path.display().to_string())));
    step("a second name", done(fs::hard_link(at("file"), at("twin"))));
    step("a second name that exists", done(fs::hard_link(at("file"), at("twin"))));
    step("names of the file", outcome(fs::metadata(at("file")).map(|file| file.nlink())));
    step("a second name of a directory", done(fs::hard_link(at("empty"), at("twins"))));
    File::options().append(true).open(at("twin"))?.write_all(b", two")?;
    step("the first name", outcome(fs::read_to_string(at("file"))));
    step("chmod", done(fs::set_permissions(at("file"), fs::Permissions::from_mode(0o640))));
    step("its mode", outcome(fs::metadata(at("file")).map(|file| format!("{:o}", file.mode()))));
    step("truncate below nothing", done(File::options().write(true).open(at("file"))?.set_len(1 << 63)));

    // As `rm -r` does: names go while the directory is read.
    let crowd = at("crowd");
    fs::create_dir(&crowd)?;
    for number in 0..ENTRIES {
        fs::write(crowd.join(number.to_string()), "")?;
    }
    let mut removed = 0;
    for entry in fs::read_dir(&crowd)? {
        fs::remove_file(entry?.path())?;
        removed += 1;
    }
    ensure!(removed == ENTRIES, "{removed} of {ENTRIES} names were read while they were removed");
    fs::remove_dir(&crowd)?;
    told.done = format!("{count} calls, {ENTRIES} names removed while they were read");
    Ok(())
}

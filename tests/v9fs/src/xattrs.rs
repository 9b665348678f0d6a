//! Extended attributes of users.

use anyhow::Result;
use rustix::{
    fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr},
    io::Errno,
};
use std::{fs, path::Path};

use crate::{Told, place::Place};

/// The most that Linux allows.
const LARGEST: usize = 64 << 10;

fn outcome<T>(result: Result<T, Errno>, show: impl FnOnce(T) -> String) -> String {
    match result {
        Ok(value) => show(value),
        Err(error) => format!("errno {}", error.raw_os_error()),
    }
}

fn get(path: &Path, name: &str) -> String {
    let mut value = vec![0; LARGEST];
    let length = getxattr(path, name, value.as_mut_slice());
    outcome(length, |length| {
        let sum = value[..length].iter().map(|byte| u64::from(*byte)).sum::<u64>();
        format!("{length} bytes that add up to {sum}")
    })
}

fn list(path: &Path) -> String {
    let mut names = vec![0_u8; LARGEST];
    let length = listxattr(path, names.as_mut_slice());
    outcome(length, |length| {
        let mut names: Vec<_> = names[..length]
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .filter(|name| name.starts_with("user."))
            .collect();
        names.sort_unstable();
        names.join(" ")
    })
}

pub fn run(place: &Place, told: &mut Told) -> Result<()> {
    let (file, folder) = (place.folder.join("file"), place.folder.join("folder"));
    fs::write(&file, "with attributes")?;
    fs::create_dir(&folder)?;
    let mut count = 0;
    for path in [&file, &folder] {
        let mut step = |what: &str, answer: String| {
            count += 1;
            told.same(format!("{what}: {answer}"));
        };
        let large = vec![7; LARGEST];
        let small = vec![7; 3000];
        let set =
            |name: &str, value: &[u8], flags| outcome(setxattr(path, name, value, flags), |()| "done".into());
        step("none", list(path));
        step("missing", get(path, "user.missing"));
        step("set", set("user.a", b"first", XattrFlags::empty()));
        step("get", get(path, "user.a"));
        step("set anew", set("user.a", b"second, longer", XattrFlags::empty()));
        step("get anew", get(path, "user.a"));
        step("create what exists", set("user.a", b"third", XattrFlags::CREATE));
        step("replace what is missing", set("user.b", b"x", XattrFlags::REPLACE));
        step("create", set("user.b", b"x", XattrFlags::CREATE));
        step("replace", set("user.b", b"xyz", XattrFlags::REPLACE));
        step("get replaced", get(path, "user.b"));
        step("make it empty", set("user.b", b"", XattrFlags::empty()));
        step("get empty", get(path, "user.b"));
        step("create empty", set("user.empty", b"", XattrFlags::CREATE));
        step("get created empty", get(path, "user.empty"));
        // Not with REPLACE: so Linux's client says that an attribute is to go.
        step("list", list(path));
        step("remove", outcome(removexattr(path, "user.a"), |()| "done".into()));
        step("remove again", outcome(removexattr(path, "user.a"), |()| "done".into()));
        step("3000 bytes", set("user.c", &small, XattrFlags::empty()));
        step("get them", get(path, "user.c"));
        step(
            "no room",
            outcome(getxattr(path.as_path(), "user.c", &mut [0_u8; 10][..]), |length| length.to_string()),
        );
        // How much fits is the file system's to say, beyond this it is Linux's.
        step("too much", set("user.d", &[&large[..], b"1"].concat(), XattrFlags::empty()));
        step("a long name", set(&format!("user.{}", "n".repeat(251)), b"", XattrFlags::empty()));
        step("list at last", list(path));
    }
    told.done = format!("{count} calls");
    Ok(())
}

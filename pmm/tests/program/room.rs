//! File systems without room, and files that are cut short, under a region.

use std::os::unix::fs::MetadataExt;

use super::*;

/// The options of a link in a file of its own, as a table of a configuration.
fn link(dir: &Dir, name: &str) -> String {
    format!(
        "[[link]]\nname = '{name}'\nno-dtb = true\nshmem-addr = '1M'\nshmem-size = '1M'\nrng = true\nshmem-file = '{}'\n",
        dir.text(name)
    )
}

#[test]
fn a_region_that_is_cut_short_ends_its_link_and_no_other() {
    let dir = Dir::new();
    let text = format!("control = '{}'\n{}{}", dir.text("control"), link(&dir, "one"), link(&dir, "two"));
    std::fs::write(dir.path("links.toml"), text).unwrap();
    let mut command = pmm();
    command.args(["run", "--config", &dir.text("links.toml")]).stdin(Stdio::null()).stderr(Stdio::piped());
    let running = Running(command.spawn().unwrap());
    dir.wait_for("links.one.state=serving");
    dir.wait_for("links.two.state=serving");
    File::options().write(true).open(dir.path("one")).unwrap().set_len(0).unwrap();
    let status = dir.wait_for("links.one.state=failed");
    let said = status["links"][0]["error"].as_str().unwrap();
    assert!(said.contains("cut short") && said.contains(&dir.text("one")), "{said}");
    // The other one serves its guest.
    let other = File::options().write(true).open(dir.path("two")).unwrap();
    other.write_all_at(&2u32.to_le_bytes(), 0xd4).unwrap();
    dir.wait_for("links.two.driver_epoch=2");
    assert_eq!(running.end().0, Some(1), "one link has failed");
}

/// A `pmm run` in a mount namespace of its own where `dir/small` is a file system of `size`, or `None` where that cannot
/// be made. `before` is done there first.
fn on_small_disk(dir: &Dir, size: &str, before: &str) -> Option<Command> {
    std::fs::create_dir(dir.path("small")).unwrap();
    let mount = format!("mount -t tmpfs -o size={size} none {}", dir.text("small"));
    let probe = Command::new("unshare").args(["--mount", "sh", "-c", &mount]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        hvl_test_kit::skipped("a full disk: no file system can be mounted in a namespace (rights?)");
        return None;
    }
    let mut command = Command::new("unshare");
    // Bounded, since one that is wrongly not refused serves.
    let script = format!("{mount} && {before} && exec $BOUND \"$@\"");
    command.args([
        "--mount",
        "sh",
        "-c",
        &script,
        "sh",
        env!("CARGO_BIN_EXE_pmm"),
        "run",
        "--no-dtb",
        "--rng",
    ]);
    command.args(["--shmem-addr", "1M", "--shmem-size", "1M", "--shmem-file", &dir.text("small/ddr")]);
    command.args(["--control", &dir.text("control")]).stdin(Stdio::null()).stderr(Stdio::piped());
    Some(command)
}

#[test]
fn a_region_for_which_there_is_no_room_is_refused() {
    for before in ["true", "truncate -s 1M ddr"] {
        let dir = Dir::new();
        let before = before.replace("ddr", &dir.text("small/ddr"));
        let Some(mut command) = on_small_disk(&dir, "512K", &before) else { return };
        let output = command.env("BOUND", "timeout 60").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("there is no room for the 0x100000 bytes") && said.contains("--shmem-file"),
            "{said}"
        );
    }
}

#[test]
fn a_disk_that_others_fill_costs_a_region_nothing() {
    let dir = Dir::new();
    // As the documentation has users make it: without a byte on the disk.
    let before = format!("truncate -s 1M {}", dir.text("small/ddr"));
    let Some(mut command) = on_small_disk(&dir, "2M", &before) else { return };
    let running = Running(command.spawn().unwrap());
    dir.wait_for("links.0.state=serving");
    // What a guest does through its export.
    let small = PathBuf::from(format!("/proc/{}/root{}", running.0.id(), dir.text("small")));
    let mut filler = File::create(small.join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    // The guest touches all of its memory, and so does the PMM, whom it makes zero what it finds.
    let ddr = File::options().write(true).open(small.join("ddr")).unwrap();
    assert!(ddr.metadata().unwrap().blocks() >= 2048, "the region is reserved");
    ddr.write_all_at(&[0; 1 << 20], 0).expect("the guest has its memory");
    dir.wait_for("links.0.wipes>=1");
    ddr.write_all_at(&2u32.to_le_bytes(), 0xd4).unwrap();
    dir.wait_for("links.0.driver_epoch=2");
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_limit_on_the_size_of_files_ends_nothing() {
    let dir = Dir::new();
    File::create(dir.path("ddr")).unwrap().set_len(1 << 20).unwrap();
    let command = dir.run(&format!("--rng --console file:{}", dir.text("console")));
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -f 1; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    let running = Running(limited.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    dir.wait_for("links.0.state=serving");
    assert_eq!(running.end().0, Some(0));
    // One that would have to grow is refused, in a sentence.
    std::fs::remove_file(dir.path("ddr")).unwrap();
    let output = limited.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--shmem-file") && said.contains("ulimit -f"), "{said}");
}

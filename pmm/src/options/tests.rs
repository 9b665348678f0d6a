//! Command lines: kvmtool's documented ones from `tests/command-lines/`, and every way to be wrong.

use super::super::{ConsoleDescription, DeviceDescription, Memory, RngDescription};
use super::*;

/// Splits a line at blanks, as a shell would for these fixtures: double quotes hold a word together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.trim().split('"').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_string)),
            _ => words.push(part.to_string()),
        }
    }
    words
}

fn pmm(line: &str) -> Result<Command, Failure> {
    parse(std::iter::once("pmm".to_string()).chain(words(line)).map(OsString::from))
}

fn links(line: &str) -> Run {
    match pmm(line) {
        Ok(Command::Run(run)) => run,
        other => panic!("{line}: {other:?}"),
    }
}

/// The message of a misuse, which must be one line.
fn wrong(line: &str) -> String {
    let text = all_wrong(line);
    assert!(!text.contains('\n'), "{line}: not one line: {text}");
    text
}

/// The messages of a misuse, in a short line each.
fn all_wrong(line: &str) -> String {
    match pmm(line) {
        Err(Failure::Misuse(text)) => {
            assert!(text.lines().all(|line| !line.is_empty() && line.len() < 300), "{line}: {text}");
            text
        }
        other => panic!("{line}: {other:?}"),
    }
}

const GOOD: &str = "run --no-dtb --shmem-addr 0x10000000 --shmem-size 16M --rng";

#[test]
fn kvmtools_command_lines_are_refused_in_sentences_that_name_the_options() {
    let lines = [
        (include_str!("../../tests/command-lines/kvm-vxworks.txt"), "-- 9p"),
        (include_str!("../../tests/command-lines/zcu102-vxworks.txt"), "later version"),
        (include_str!("../../tests/command-lines/zcu102-no-dtb.txt"), "--vproxy"),
    ];
    for (line, option) in lines {
        let text = all_wrong(&format!("run {line}"));
        assert!(text.contains(option), "{text}");
    }
}

#[test]
fn each_option_of_a_later_version_is_named() {
    for option in ["--vproxy", "--kernel vxWorks_lpc"] {
        let text = wrong(&format!("{GOOD} {option}"));
        assert!(text.starts_with(option) && text.contains("later version"), "{text}");
    }
    let text = wrong("run --shmem-addr 0x10000000 --shmem-size 16M --rng");
    assert!(text.contains("--no-dtb") && text.contains("later version"), "{text}");
}

#[test]
fn kvmtools_command_lines_work_without_what_comes_later() {
    let lines = [
        (include_str!("../../tests/command-lines/kvm-vxworks.txt"), 0xd400_0000, 7),
        (include_str!("../../tests/command-lines/zcu102-vxworks.txt"), 0x7700_0000, 8),
        (include_str!("../../tests/command-lines/zcu102-no-dtb.txt"), 0x7700_0000, 7),
    ];
    for (line, base, without_effect) in lines {
        let mut left = vec!["pmm".to_string(), "run".to_string()];
        let mut skip = 0;
        for word in words(line) {
            match word.as_str() {
                _ if skip > 0 => skip -= 1,
                "--network" | "--vsock" | "--9p" | "--kernel" => skip = 1,
                "--" => skip = 2,
                "--vproxy" => {}
                _ => left.push(word),
            }
        }
        left.push("--no-dtb".into());
        let run = match parse(left.into_iter().map(OsString::from)) {
            Ok(Command::Run(run)) => run,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!((run.links[0].base, run.links[0].size), (base, 16 << 20));
        let said = run.notes.iter().filter(|note| note.contains("has no effect here")).count();
        assert_eq!(said, without_effect, "{:?}", run.notes);
    }
}

#[test]
fn a_whole_command_line() {
    let run = links(
        "run --pmm --no-dtb --shmem-addr 0x10000000 --shmem-size 16M --shmem-file /tmp/ddr --shmem-offset 0x10000000 \
         --doorbell unix-stream:/tmp/bell --rng --rng-queue 16 --console pty:/tmp/r5 --console-pool 64K --name r5-0 \
         --wait 30 --fresh --state /tmp/state --control /tmp/control --log-json --debug --debug",
    );
    let link = &run.links[0];
    assert_eq!(link.name, "r5-0");
    assert_eq!(link.memory, Memory::File { path: "/tmp/ddr".into(), offset: 0x1000_0000 });
    assert_eq!(link.doorbell, Doorbell::UnixStream { path: "/tmp/bell".into(), listen: false });
    let end = ConsoleEnd::Pty(Some("/tmp/r5".into()));
    assert_eq!(
        link.devices,
        [
            DeviceDescription::Rng(RngDescription { queue: 16, pool: 0x800 }),
            DeviceDescription::Console(ConsoleDescription { end, queue: 64, pool: 0x1_0000 }),
        ]
    );
    assert!(link.fresh);
    assert_eq!(link.state, Some("/tmp/state".into()));
    assert_eq!(run.wait, Some(Duration::from_secs(30)));
    assert_eq!(run.control, Some("/tmp/control".into()));
    assert_eq!(run.log, LogOptions { level: LogLevel::Debug, json: true });
    assert_eq!(run.notes.len(), 1, "only --pmm has no effect: {:?}", run.notes);
}

#[test]
fn sockets_stand_before_entropy_and_their_path_has_a_default() {
    let vsock = |line: &str| match links(&format!("{GOOD} {line}")).links[0].devices.first() {
        Some(DeviceDescription::Vsock(vsock)) => vsock.clone(),
        other => panic!("{line}: {other:?}"),
    };
    // kvmtool's form.
    let default = vsock("--vsock 3 --name r5-0");
    assert!(default.is_default && default.path.ends_with("vsock/r5-0/socket"));
    assert_eq!((default.cid, default.queue, default.pool), (3, 32, 0x2_4000));
    let given = vsock("--vsock 7,path=/tmp/r5 --vsock-queue 64 --vsock-pool 192K");
    assert_eq!((given.cid, given.queue, given.pool), (7, 64, 0x3_0000));
    assert!(!given.is_default && given.path == Path::new("/tmp/r5"));
}

#[test]
fn the_last_of_a_repeated_flag_wins() {
    let run = links(&format!(
        "{GOOD} --rng --no-dtb --shmem-size 1M --shmem-size 2M --doorbell poll --doorbell poll:5"
    ));
    assert_eq!(run.links[0].size, 2 << 20);
    assert_eq!(run.links[0].doorbell, Doorbell::Poll { micros: 5 });
    let run = links(&format!("{GOOD} --debug --log-level warn --console virtio -p -x -p=y"));
    assert_eq!(run.log.level, LogLevel::Warn);
    let consoles = run.links[0].devices.iter().filter_map(|device| match device {
        DeviceDescription::Console(console) => Some(&console.end),
        _ => None,
    });
    assert!(consoles.eq([&ConsoleEnd::Stdio]));
}

#[test]
fn misuse_names_option_value_and_way_out() {
    // What is typed after a good command line, and what the message must hold.
    let cases: &[(&str, &[&str])] = &[
        ("--dorbell poll", &["--dorbell", "'--doorbell'"]),
        ("--frobnicate 3", &["--frobnicate", "--help"]),
        ("surplus", &["surplus", "--help"]),
        ("--rng=yes", &["--rng", "yes"]),
        ("--shmem-addr", &["--shmem-addr", "<A>"]),
        ("--shmem-addr 12Q", &["--shmem-addr 12Q", "decimal or 0x"]),
        ("--shmem-addr 0", &["--shmem-addr 0x0", "multiple of 4096"]),
        ("--shmem-addr 0x1234", &["--shmem-addr 0x1234", "multiple of 4096"]),
        ("--shmem-addr 0xfffffffffff000", &["--shmem-addr 0xfffffffffff000", "lower address"]),
        ("--shmem-size 5000", &["--shmem-size 0x1388", "multiple of 4096"]),
        ("--shmem-size 4G", &["--shmem-size 0x100000000", "less"]),
        ("--shmem-size 4K", &["--shmem-size 0x1000", "too small", "0x2000"]),
        ("--shmem-size 0", &["--shmem-size 0x0", "too small"]),
        ("--shmem-posix a/b", &["--shmem-posix a/b", "slash"]),
        ("--shmem-fd 1", &["--shmem-fd 1", "above 2"]),
        ("--shmem-file /a --shmem-posix b", &["--shmem-file", "--shmem-posix", "leave one out"]),
        ("--shmem-offset 4K", &["--shmem-offset", "--shmem-file", "leave it out"]),
        ("--shmem-file /a --shmem-offset 12", &["--shmem-offset 0xc", "multiple of 4096"]),
        ("--doorbell bell", &["--doorbell bell", "unix-stream:PATH"]),
        ("--doorbell unix-stream:/a,server=on", &["--doorbell", "',server=on'", ",listen"]),
        ("--console serial", &["--console serial", "stdio"]),
        ("--console unix:/a --doorbell unix-stream:/a", &["--console", "--doorbell", "/a"]),
        ("--rng-queue 3", &["--rng-queue 3", "power of two"]),
        ("--rng-queue 2048", &["--rng-queue 2048", "1024"]),
        ("--rng-pool 8", &["--rng-pool 8", "64"]),
        ("--console-queue 8", &["--console-queue 8", "'--console'"]),
        ("--vsock", &["--vsock", "CID"]),
        ("--vsock 2", &["--vsock 2", "from 3"]),
        ("--vsock 3,/tmp/v", &["--vsock 3,/tmp/v", "path=PATH"]),
        ("--vsock-pool 8K", &["--vsock-pool 0x2000", "'--vsock'"]),
        ("--vsock 3,path=/a --console unix:/a", &["--vsock", "--console", "/a"]),
        ("--name a/b", &["--name 'a/b'", "letters"]),
        ("--transport pci", &["--transport pci", "mmio"]),
        ("--log-level loud", &["--log-level loud", "debug"]),
        ("--control ", &["--control", "<PATH>"]),
        ("-- 9p /tmp,/tmp", &["'-- 9p'", "'--9p'"]),
        ("--", &["'--'", "leave it out"]),
        ("--wait soon", &["--wait soon", "number"]),
        ("--gone-after 0", &["--gone-after 0", "at least 1"]),
        ("--bogus", &["--bogus: unknown option; 'pmm run --help'"]),
        ("--consloe", &["is '--console' meant?"]),
    ];
    for (typed, parts) in cases {
        let text = wrong(&format!("{GOOD} {typed}"));
        for part in *parts {
            assert!(text.contains(part), "'{typed}' should name '{part}': {text}");
        }
    }
    let text = all_wrong("run");
    for (line, parts) in text.lines().zip([
        &["--no-dtb", "guest"][..],
        &["--shmem-addr", "0x10000000"],
        &["--shmem-size", "16M"],
        &["--rng"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {text}");
    }
    assert_eq!(text.lines().count(), 4, "{text}");
    let whole: &[(&str, &[&str])] = &[
        ("", &["pmm run"]),
        ("stop", &["stop", "pmm status"]),
        ("run --no-dtb --rng --shmem-size 1M", &["--shmem-addr", "0x10000000"]),
        ("run --no-dtb --rng --shmem-addr 1M", &["--shmem-size", "16M"]),
        ("run --no-dtb --shmem-addr 1M --shmem-size 1M", &["--rng", "--console"]),
        ("status --wait-for nonsense", &["--wait-for nonsense", ">="]),
        ("status --timeout 5", &["--timeout 5", "--wait-for"]),
        ("status --follow --wait-for links.0.state=serving", &["--follow", "--wait-for"]),
    ];
    for (typed, parts) in whole {
        let text = wrong(typed);
        for part in *parts {
            assert!(text.contains(part), "'{typed}' should name '{part}': {text}");
        }
    }
}

#[test]
fn help_is_whole() {
    let Ok(Command::Print(help)) = pmm("run --help") else { panic!("no help") };
    for option in Cli::command().find_subcommand("run").unwrap().get_arguments() {
        if let Some(long) = option.get_long() {
            assert!(
                option.is_hide_set() || help.contains(&format!("--{long}")),
                "--{long} is not in the help text"
            );
            assert!(option.is_hide_set() || option.get_help().is_some(), "--{long} is not explained");
        }
    }
    assert!(!help.contains("--kernel"));
    let page = include_str!("../../../docs/pmm.md");
    for command in Cli::command().get_subcommands() {
        for long in command.get_arguments().filter_map(|option| option.get_long()) {
            assert!(page.contains(&format!("--{long}")), "--{long} is not in docs/pmm.md");
        }
    }
    assert!(matches!(pmm("--version"), Ok(Command::Print(_))));
    assert!(matches!(pmm("status --help"), Ok(Command::Print(_))));
}

/// A configuration file that is removed again.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("pmm-options-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }
    fn run(&self, more: &str) -> Result<Command, Failure> {
        pmm(&format!("run --config {} {more}", self.0.display()))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_says_the_same_as_a_command_line() {
    let line =
        format!("{GOOD} --shmem-posix x --console file:/tmp/log --doorbell poll:7 --wait 3 --log-level warn");
    let Ok(Command::Print(text)) = pmm(&format!("{line} --print-config")) else { panic!("nothing printed") };
    let file = File::new("same", &text);
    let Ok(Command::Run(from_file)) = file.run("") else { panic!("{text}") };
    let from_line = links(&line);
    assert_eq!(from_file.links, from_line.links);
    assert_eq!((from_file.wait, from_file.log), (from_line.wait, from_line.log));
    assert!(from_line.notes.iter().any(|note| note.starts_with("--wait 3: has no effect")));
}

#[test]
fn the_files_in_the_documentation_work() {
    let pages = [
        (include_str!("../../../docs/pmm.md"), &["r5-0", "r5-1"][..]),
        (include_str!("../../../README.md"), &["r5-0"]),
    ];
    for (page, names) in pages {
        let text = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let run = match File::new("page", text).run("") {
            Ok(Command::Run(run)) => run,
            other => panic!("{other:?} for {text}"),
        };
        assert!(run.links.iter().map(|link| &link.name).eq(names), "{text}");
    }
}

#[test]
fn several_links() {
    let link = |name: &str, more: &str| {
        format!(
            "[[link]]\nname = '{name}'\nno-dtb = true\nshmem-addr = 0x10000000\nshmem-size = '1M'\nrng = true\n{more}\n"
        )
    };
    let ddr = |offset: u64| format!("shmem-file = '/tmp/ddr'\nshmem-offset = {offset}");
    let file = File::new("two", &(link("a", &ddr(0)) + &link("b", &ddr(1 << 20))));
    let Ok(Command::Run(run)) = file.run("--debug") else { panic!("two links are fine") };
    assert_eq!(run.links.len(), 2);
    assert_eq!(run.log.level, LogLevel::Debug);

    let bad = [
        (link("a", "") + &link("a", ""), "--name a: two links"),
        (link("a", &ddr(0)) + &link("b", &ddr(4096)), "--shmem-file /tmp/ddr of 'b': its region"),
        (link("a", "shmem-posix = 'x'") + &link("b", "shmem-file = '/dev/shm/x'"), "overlaps"),
        (link("a", "console = 'stdio'") + &link("b", "console = 'virtio'"), "this terminal"),
        (
            link("a", "doorbell = 'unix-stream:/x'") + &link("b", "doorbell = 'unix-stream:/x'"),
            "doorbell of 'b'",
        ),
        (link("a", "console = 'file:/tmp/ddr'") + &link("b", &ddr(0)), "--shmem-file of 'b'"),
        (link("a", "") + &link("b", "shmem-size = 1"), "line"),
        (link("a", "frob = 1"), "line 7: unknown field `frob`"),
        (link("a", "rng-queue = 5"), "link 'a': rng-queue 5"),
        (link("a", "doorbell = 'bell'"), "'bell'"),
        (
            "[[link]]\nname = 'c'\nshmem-addr = '1M'\nshmem-size = '1M'\nrng = true\n".into(),
            "link 'c': no-dtb is missing",
        ),
        (String::new(), "describes no link"),
        ("x".into(), "line 1"),
    ];
    for (index, (text, part)) in bad.iter().enumerate() {
        match File::new(&format!("bad{index}"), text).run("") {
            Err(Failure::Misuse(said)) => {
                assert!(said.contains(part) && !said.contains('\n'), "{text}\nshould say '{part}': {said}");
            }
            other => panic!("{text}\n{other:?}"),
        }
    }
    assert!(matches!(pmm("run --config /nonexistent/x.toml"), Err(Failure::Refused(_))));
    let both = file.run("--rng").unwrap_err().to_string();
    assert!(both.contains("--rng") && both.contains("--config"), "{both}");
}

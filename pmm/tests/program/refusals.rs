//! What is wrong with a command, all of it at once, and what cannot be written.

use super::*;

/// What a command that is wrong says: a line each.
fn refusals(command: &mut Command) -> Vec<String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
    let lines = said.lines().map(|line| line.strip_prefix("pmm: ").unwrap_or_else(|| panic!("{said}")));
    lines.map(str::to_string).collect()
}

/// Holds if the lines begin like this, one by one.
#[track_caller]
fn begin_like(said: &[String], beginnings: &[&str]) {
    let fits = said.iter().zip(beginnings).all(|(line, beginning)| line.starts_with(beginning));
    assert!(fits && said.len() == beginnings.len(), "{said:#?}\nshould begin like\n{beginnings:#?}");
}

#[test]
fn kvmtools_documented_lines_are_refused_in_one_go() {
    let cases: [(&str, &[&str]); 3] = [
        (
            include_str!("../command-lines/kvm-vxworks.txt"),
            &[
                "--network mode=tap,tapif=tap0,trans=mmio,vhost=1: 'vhost=1'",
                "--vproxy: ",
                "'-- 9p': ",
                "--kernel vxWorks_lpc: ",
                "--no-dtb is missing",
            ],
        ),
        (include_str!("../command-lines/zcu102-vxworks.txt"), &["--vproxy: ", "--no-dtb is missing"]),
        (include_str!("../command-lines/zcu102-no-dtb.txt"), &["--vproxy: "]),
    ];
    for (line, beginnings) in cases {
        let script = format!("exec \"$0\" run {line}");
        let said = refusals(Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_pmm")]));
        begin_like(&said, beginnings);
    }
}

#[test]
fn each_refusal_of_a_command_line_has_its_hint_in_the_order_of_the_line() {
    let mut command = pmm();
    command.args("run -rng -console=stdio --shmem-adr 1M --shmem-size 5000 --rng-queue 3 surplus".split(' '));
    command.args("--doorbell bell --frob 3 --network mode=tap,trans=pci,mtu=1 --transport pci".split(' '));
    let said = refusals(&mut command);
    begin_like(
        &said,
        &[
            "-rng: options have two dashes; write '--rng'",
            "-console: options have two dashes; write '--console=stdio'",
            "--shmem-adr: unknown option; is '--shmem-addr' meant?",
            "--shmem-size 0x1388: use a multiple of 4096",
            "--rng-queue 3: use a power of two",
            "surplus: not an option",
            "--doorbell bell: write unix-stream:PATH",
            "--frob: unknown option; 'pmm run --help' lists the options",
            "--network mode=tap,trans=pci,mtu=1: a link has no bus; write trans=mmio or leave it out; and write mtu=N",
            "--transport pci: a link has no bus",
            "--no-dtb is missing",
        ],
    );
    // A short option's value is not a slip, but an option's own name behind one dash is.
    begin_like(
        &refusals(pmm().args(["run", "-pmm"]))[..1],
        &["-pmm: options have two dashes; write '--pmm'"],
    );
    // What a value holds never looks like a refusal of its own.
    let said = refusals(pmm().args(["run", "--doorbell", "x\npmm: \x1b[2J"]));
    assert!(said[0].starts_with("--doorbell x\\npmm: \\u{1b}[2J: write"), "{said:?}");
    begin_like(
        &refusals(pmm().args(["serve-9p", "--msize", "many", "--listen", "x", "-ro"])),
        &[
            "--msize many: ",
            "--listen x: ",
            "-ro: options have two dashes; write '--ro'",
            "<DIR>: must be given",
        ],
    );
    begin_like(
        &refusals(pmm().args(["status", "--wait-for", "a", "--timeout", "x", "--wait-for", "b"])),
        &["--wait-for a: ", "--timeout x: ", "--wait-for b: "],
    );
}

#[test]
fn each_refusal_of_a_file_is_told_with_its_line() {
    let dir = Dir::new();
    let file = dir.text("links.toml");
    let text = "wait = 'soon'\nfrob = 1\n[[link]]\nname = 'a'\nno-dtb = true\nshmem-addr = 12\nshmem-size = 'x'\n\
                rng = 1\nconsole = 'serial'\n[[link]]\nname = 'b'\nshmem-addr = '1M'\nrng = true\nrng-queue = 5\n";
    std::fs::write(dir.path("links.toml"), text).unwrap();
    let said = refusals(pmm().args(["run", "--config", &file, "--log-level", "loud"]));
    let line = |line: u32, what: &str| format!("--config {file} line {line}: {what}");
    let of = |link: &str, what: &str| format!("{file}, link '{link}': {what}");
    let expected = [
        "--log-level loud: unknown value".to_string(),
        line(1, "'soon': write a number"),
        line(2, "unknown field `frob`"),
        of("a", "shmem-addr 0xc: use a multiple"),
        line(7, "'x': write a number"),
        line(8, "invalid type: integer `1`, expected a boolean"),
        line(9, "'serial': write stdio"),
        of("b", "rng-queue 5: use a power of two"),
        of("b", "no-dtb is missing"),
        of("b", "shmem-size is missing"),
    ];
    begin_like(&said, &expected.iter().map(String::as_str).collect::<Vec<_>>());
    let said = refusals(pmm().args(["run", "--rng", "--config", "/nonexistent/x"]));
    begin_like(&said, &["--rng and --config /nonexistent/x: ", "--config /nonexistent/x: cannot be read"]);
    // Sentences that make no sense are told as far as they can be read.
    std::fs::write(dir.path("links.toml"), "x\nwait = = 3\n").unwrap();
    let said = refusals(pmm().args(["run", "--config", &file]));
    begin_like(&said, &[&line(1, ""), &line(2, "")]);
}

#[test]
fn what_cannot_be_written_is_told() {
    let dir = Dir::new();
    let running = dir.start("--rng");
    let control = dir.text("control");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let print_config =
        ["run", "--no-dtb", "--shmem-addr", "1M", "--shmem-size", "1M", "--rng", "--print-config"];
    let status = ["status", "--control", &control];
    let json = ["status", "--json", "--control", &control];
    let wait = ["status", "--wait-for", "links.0.state=serving", "--control", &control];
    let printed: [&[&str]; 7] =
        [&print_config, &["--help"], &["run", "--help"], &["--version"], &status, &json, &wait];
    for arguments in printed {
        let said = failure(pmm().args(arguments).stdout(full()), 1);
        assert!(said.contains("standard output cannot be written (No space left"), "{arguments:?}: {said}");
        // Whoever has closed the other end has seen enough.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = pmm().args(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{arguments:?}");
    }
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_variable_that_names_no_program_is_blamed_for_it() {
    let dir = Dir::new();
    std::fs::write(dir.path("passt"), "no program").unwrap();
    let nowhere = dir.text("empty");
    let start = |passt: Option<&str>| {
        let mut command = dir.run("--network");
        command.env("PATH", &nowhere).env_remove("PMM_PASST");
        command.envs(passt.map(|path| ("PMM_PASST", path)));
        failure(&mut command, 1)
    };
    for (path, why) in [
        (dir.text("passt"), "it cannot be executed: Permission denied"),
        (dir.text("missing"), "No such file"),
        (dir.text(""), "it is no file"),
    ] {
        let said = start(Some(&path));
        assert!(said.contains(&format!("$PMM_PASST names {path}, which is no program ({why}")), "{said}");
        assert!(!said.contains("is not on PATH"), "{said}");
    }
    assert!(start(None).contains("'passt' is not on PATH; install it"));
}

#[test]
fn a_condition_that_cannot_come_true_is_not_waited_for() {
    let dir = Dir::new();
    let running = dir.start("--rng --name r5-0");
    // Without a limit of its own it would wait for a minute.
    let never = |condition: &str| {
        failure(pmm().args(["status", "--control", &dir.text("control"), "--wait-for", condition]), 1)
    };
    let said = never("links.r5.state=serving");
    assert!(said.contains("there is no 'r5' in 'links'; it has r5-0"), "{said}");
    let said = never("links.0.devices.console.state!=running");
    assert!(said.contains("there is no 'console' in 'links.0.devices'; it has rng"), "{said}");
    let said = refusals(pmm().args(["status", "--wait-for", "links.0.stat==serving"]));
    begin_like(&said, &["--wait-for links.0.stat==serving: '==' is no operator"]);
    assert_eq!(running.end().0, Some(0));
}

//! `docs/abi.md` is the normative text of the wire format: its tables say what the code says, name by name.

use hvl_shared_abi::header::{self, Fault, REGISTERS, Writer};
use hvl_shared_abi::{block, layout};

const TEXT: &str = include_str!("../../docs/abi.md");

/// The cells of the table behind `<!-- table: name -->`, without its two head lines.
fn table(name: &str) -> Vec<Vec<String>> {
    let marker = format!("<!-- table: {name} -->");
    let (_, rest) = TEXT.split_once(&marker).unwrap_or_else(|| panic!("docs/abi.md has no table {name}"));
    let rows = rest.lines().skip(1).take_while(|line| line.starts_with('|')).skip(2);
    let rows: Vec<_> = rows
        .map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "table {name} has no rows");
    rows
}

fn number(cell: &str) -> u32 {
    let parsed = match cell.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => cell.parse(),
    };
    parsed.unwrap_or_else(|error| panic!("{cell}: {error}"))
}

#[test]
fn every_register_has_the_documented_offset_and_writer() {
    let documented: Vec<_> =
        table("registers").iter().map(|row| (number(&row[0]), row[1].clone(), row[2].clone())).collect();
    let coded: Vec<_> = REGISTERS
        .iter()
        .map(|register| {
            let writer = match register.writer {
                Writer::Pmm => "PMM",
                Writer::Guest => "guest",
                Writer::Both => "both",
            };
            (register.offset, register.name.to_owned(), writer.to_owned())
        })
        .collect();
    assert_eq!(documented, coded);
}

#[test]
fn every_constant_has_the_documented_value() {
    macro_rules! coded {
        ($($module:ident: $($name:ident)*;)*) => {
            vec![$($((stringify!($name).to_owned(), u64::from(u32::try_from($module::$name).unwrap()))),*),*]
        };
    }
    let coded = coded! {
        header: WINDOW_SIZE MAX_DEVICES HEADER_SIZE CONFIG CONFIG_SIZE MAGIC EXT_MAGIC EXT_VERSION EXT_LENGTH VENDOR
            PFN_ACK QUEUE_POISON PLAIN_PAGE;
        layout: LINE MAX_QUEUES MAX_QUEUE_SIZE;
        block: BLOCK_MAGIC BLOCK_VERSION HEAD_BYTES ENTRY_BYTES MAX_ENTRIES PANIC_TEXT_BYTES LINK_BYTES DEVICE_BYTES
            QUEUE_BYTES;
    };
    let documented: Vec<_> =
        table("constants").iter().map(|row| (row[0].clone(), u64::from(number(&row[1])))).collect();
    assert_eq!(documented, coded);
}

#[test]
fn every_fault_and_entry_has_the_documented_number() {
    for row in table("faults") {
        let fault = Fault::from_word(number(&row[0]));
        assert_eq!(format!("{fault:?}"), row[1]);
        assert_eq!(fault.word(), number(&row[0]));
    }
    let coded = [
        (block::entry::LINK, "LINK"),
        (block::entry::DEVICE, "DEVICE"),
        (block::entry::QUEUES, "QUEUES"),
        (block::entry::POOL, "POOL"),
        (block::entry::PANIC_TEXT, "PANIC_TEXT"),
    ];
    let documented = table("entries");
    assert_eq!(documented.len(), coded.len());
    for (row, (number_, name)) in documented.iter().zip(coded) {
        assert_eq!((number(&row[0]), row[1].as_str()), (number_, name));
    }
}

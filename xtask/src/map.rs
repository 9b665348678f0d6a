//! `cargo xtask map`: a picture of the region, drawn from the layout that the code computes, so that it cannot lie.

use anyhow::{Context, Result, bail};
use hvl_shared_abi::header::{Extent, HEADER_SIZE, WINDOW_SIZE};
use hvl_shared_abi::{DeviceSpec, Layout};
use std::{fmt::Write, fs, path::PathBuf};

use crate::paths;

const REGION: u32 = 0x10_0000;
/// Height of a row, width of the bar, in pixels.
const ROW: usize = 26;
const BAR: usize = 330;

/// Who stores into a place, by colour.
#[derive(Clone, Copy)]
enum Writer {
    Pmm,
    Guest,
    Both,
}

impl Writer {
    fn colour(self) -> &'static str {
        match self {
            Writer::Pmm => "#c6dbef",
            Writer::Guest => "#fdd0a2",
            Writer::Both => "#dadaeb",
        }
    }
}

struct Row {
    place: Extent,
    writer: Writer,
    text: String,
}

fn rows(layout: &Layout) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |at, len, writer, text: String| rows.push(Row { place: Extent { at, len }, writer, text });
    let mut at = 0;
    for (index, device) in layout.devices().iter().enumerate() {
        row(
            at,
            WINDOW_SIZE,
            Writer::Both,
            format!("window {index}: {} (one writer a word)", device.spec.id.name()),
        );
        at += WINDOW_SIZE;
        let block = device.block;
        row(
            block.at,
            block.len,
            Writer::Pmm,
            format!("block of {}: queues and pool, published", device.spec.id.name()),
        );
        for (number, queue) in device.queues().enumerate() {
            let [desc, avail, used] = queue.extents();
            let name = format!("{} queue {number}, {} entries", device.spec.id.name(), queue.size);
            row(desc.at, desc.len, Writer::Guest, format!("{name}: descriptors"));
            row(avail.at, avail.len, Writer::Guest, format!("{name}: available ring"));
            row(used.at, used.len, Writer::Pmm, format!("{name}: used ring"));
        }
        row(
            device.pool.at,
            device.pool.len,
            Writer::Both,
            format!("pool of {}: buffers", device.spec.id.name()),
        );
    }
    row(
        at,
        HEADER_SIZE - at,
        Writer::Pmm,
        "rest of the header page; a DeviceID of 0 ends the windows".into(),
    );
    let text = layout.panic_text();
    row(text.at, text.len, Writer::Guest, "last words of the firmware".into());
    row(layout.end(), REGION - layout.end(), Writer::Both, "free".into());
    rows.sort_by_key(|row| row.place.at);
    rows
}

fn draw() -> Result<String> {
    let layout =
        Layout::place(&[DeviceSpec::RNG, DeviceSpec::CONSOLE], REGION).context("the default layout")?;
    let rows = rows(&layout);
    let (width, height) = (900, 90 + rows.len() * ROW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"28\" font-size=\"16\">A region of 1 MiB with entropy and a console, as the PMM places it \
         (not to scale)</text>\n"
    );
    let legend =
        [(Writer::Pmm, "the PMM stores"), (Writer::Guest, "the guest stores"), (Writer::Both, "either")];
    for (x, (writer, text)) in (20..).step_by(170).zip(legend) {
        writeln!(svg, "<rect x=\"{x}\" y=\"42\" width=\"16\" height=\"16\" fill=\"{}\"/>", writer.colour())?;
        writeln!(svg, "<text x=\"{}\" y=\"55\">{text}</text>", x + 22)?;
    }
    for (y, row) in (75..).step_by(ROW).zip(&rows) {
        let Extent { at, len } = row.place;
        writeln!(
            svg,
            "<rect x=\"90\" y=\"{y}\" width=\"{BAR}\" height=\"{ROW}\" fill=\"{}\" stroke=\"#666\"/>\n\
             <text x=\"82\" y=\"{}\" text-anchor=\"end\" font-family=\"monospace\">{at:#07x}</text>\n\
             <text x=\"100\" y=\"{}\" font-family=\"monospace\">{len} bytes</text>\n\
             <text x=\"{}\" y=\"{}\">{}</text>",
            row.writer.colour(),
            y + 18,
            y + 18,
            90 + BAR + 14,
            y + 18,
            row.text,
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn path() -> PathBuf {
    paths::root().join("docs/memory-map.svg")
}

/// Draws it anew.
pub fn run() -> Result<()> {
    fs::write(path(), draw()?).with_context(|| format!("{} cannot be written", path().display()))?;
    eprintln!("wrote {}", path().display());
    Ok(())
}

/// Whether the picture in docs/ is the one that the code would draw.
pub fn check() -> Result<()> {
    if fs::read_to_string(path()).ok() != Some(draw()?) {
        bail!("{} is not what the code places; `cargo xtask map` draws it anew", path().display());
    }
    Ok(())
}

//! What was measured, as text, JSON, a part of a Markdown page, and a picture.

use crate::cases::Case;
use crate::machine::{Machine, Quiet};
use crate::stats::Spread;
use anyhow::{Context, Result, bail};
use plotters::prelude::*;
use serde::Serialize;
use std::path::Path;

/// Everything.
#[derive(Serialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// How quiet it was there.
    pub quiet: Quiet,
    /// Rounds; in each, every contender ran once.
    pub rounds: usize,
    /// What came out.
    pub cases: Vec<Outcome>,
    /// What could not be measured, and why.
    pub skipped: Option<String>,
}

/// Of one case.
#[derive(Serialize)]
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// Bytes of a message, where it is their number that matters.
    pub bytes: Option<usize>,
    /// Ours.
    pub ours: Contender,
    /// The stock pair, for a case of the ring.
    pub stock: Option<Contender>,
    /// What none of them can beat.
    pub limits: Vec<Contender>,
}

/// One contender.
#[derive(Serialize)]
pub struct Contender {
    /// Its name.
    pub name: &'static str,
    /// Nanoseconds a message.
    pub nanoseconds: Spread,
    /// Our time over its time, within rounds.
    pub ours_over_it: Spread,
    /// Its time over the stock pair's, within rounds, if there is one.
    pub it_over_stock: Option<Spread>,
    /// Nanoseconds a message in each round.
    pub samples: Vec<f64>,
}

impl Outcome {
    /// From the samples of ours, stock if there is one, and the limits.
    pub fn new(case: &Case, samples: Vec<(&'static str, Vec<f64>)>) -> Option<Outcome> {
        let (_, ours) = samples.first()?.clone();
        let stock = samples.get(1).filter(|(name, _)| *name == STOCK).map(|(_, stock)| stock.clone());
        let mut contenders = samples.into_iter().map(|(name, samples)| Contender {
            name,
            nanoseconds: Spread::of(&samples),
            ours_over_it: Spread::of_ratios(&ours, &samples),
            it_over_stock: stock.as_ref().map(|stock| Spread::of_ratios(&samples, stock)),
            samples,
        });
        Some(Outcome {
            name: case.name,
            title: case.title,
            bytes: case.bytes,
            ours: contenders.next()?,
            stock: if stock.is_some() { contenders.next() } else { None },
            limits: contenders.collect(),
        })
    }
    /// Whether ours is faster than the stock pair in at least three quarters of the rounds; nothing where that did not run.
    pub fn won(&self) -> Option<bool> {
        Some(self.stock.as_ref()?.ours_over_it.high < 1.0)
    }
    /// A contender's time, and how many bytes a second that is.
    fn pace(&self, contender: &Contender) -> String {
        let spread = contender.nanoseconds;
        match self.bytes {
            Some(bytes) => format!("{}, {}", time(spread), rate(bytes as f64 / spread.median)),
            None => time(spread),
        }
    }
}

/// The contender that is compared with.
pub const STOCK: &str = "stock";

/// Bytes a nanosecond with as many digits as mean something.
fn rate(gigabytes: f64) -> String {
    match gigabytes {
        fast if fast >= 1.0 => format!("{fast:.2} GB/s"),
        slow => format!("{:.0} MB/s", slow * 1000.0),
    }
}

/// Nanoseconds with as many digits as mean something.
fn time(spread: Spread) -> String {
    match spread.median {
        ns if ns >= 10_000.0 => format!("{:.1} µs", ns / 1000.0),
        ns if ns >= 100.0 => format!("{ns:.0} ns"),
        ns => format!("{ns:.1} ns"),
    }
}
fn ratio(spread: Spread) -> String {
    format!("{:.2} ({:.2}–{:.2})", spread.median, spread.low, spread.high)
}

impl Report {
    /// Machine and conditions, a line each.
    fn conditions(&self) -> Vec<String> {
        let Machine { cpu, cores, kernel, rustc, date } = &self.machine;
        let Quiet { others_percent, unsteady_percent, .. } = self.quiet;
        let mut lines = vec![
            format!("{cpu}, {cores} cores; {kernel}; {rustc}; {date}."),
            format!(
                "{} rounds. Others used {others_percent:.1} % of the machine; the same work varied by {unsteady_percent:.1} %.",
                self.rounds
            ),
        ];
        if *cores < 2 {
            lines.push("SKIPPED: the cases with two cores, because there is one.".into());
        }
        lines.extend(self.skipped.clone());
        lines.extend(self.quiet.warning.clone());
        lines
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let mut out = self.conditions().join("\n") + "\n";
        for case in &self.cases {
            out += &format!("\n{}: {}\n", case.name, case.title);
            out += &format!("  {:32}{:>10}\n", case.ours.name, case.pace(&case.ours));
            for contender in case.stock.iter().chain(&case.limits) {
                let (pace, against) = (case.pace(contender), ratio(contender.ours_over_it));
                out += &format!("  {:32}{pace:>10}  {} / it {against}\n", contender.name, case.ours.name);
            }
        }
        out
    }

    /// For the page.
    fn markdown(&self, picture: &str) -> String {
        let mut out = String::new();
        if let Some(warning) = &self.quiet.warning {
            out += &format!("> **{warning}** Run it again on a quiet one.\n\n");
        }
        for line in self.conditions().iter().filter(|line| Some(*line) != self.quiet.warning.as_ref()) {
            out += &format!("- {line}\n");
        }
        if self.rings().next().is_some() {
            out += &self.table_of_rings();
            out += &format!("\n![Time a message over the stock pair's, case by case]({picture})\n");
        }
        if self.cases.iter().any(|case| case.stock.is_none()) {
            out += &self.table_of_links();
        }
        out
    }

    fn table_of_rings(&self) -> String {
        let mut out: String =
            "\n| case | ours | stock | ours ÷ stock | limit | | ours ÷ limit |\n|---|---|---|---|---|---|---|\n".into();
        for (case, stock) in self.rings() {
            let (name, ours, versus) = (case.title, time(case.ours.nanoseconds), ratio(stock.ours_over_it));
            let mut left = format!("{name} | {ours} | {} | **{versus}**", time(stock.nanoseconds));
            for limit in &case.limits {
                let (time, ratio) = (time(limit.nanoseconds), ratio(limit.ours_over_it));
                out += &format!("| {left} | {} | {time} | {ratio} |\n", limit.name);
                left = " | | | ".into();
            }
        }
        out
    }

    fn table_of_links(&self) -> String {
        let mut out: String =
            "\n| over a link | ours | alone | | ours ÷ alone |\n|---|---|---|---|---|\n".into();
        for case in self.cases.iter().filter(|case| case.stock.is_none()) {
            for limit in &case.limits {
                let (ours, alone, ratio) =
                    (case.pace(&case.ours), case.pace(limit), ratio(limit.ours_over_it));
                out += &format!("| {} | {ours} | {} | {alone} | **{ratio}** |\n", case.title, limit.name);
            }
        }
        out
    }

    /// The cases with a stock pair, and that.
    fn rings(&self) -> impl Iterator<Item = (&Outcome, &Contender)> {
        self.cases.iter().filter_map(|case| Some((case, case.stock.as_ref()?)))
    }

    /// Puts the results into a Markdown page, and the picture beside it.
    pub fn write_page(&self, page: &Path) -> Result<()> {
        let (before, after) = around_results(page)?;
        let picture = page.with_extension("svg");
        let name = picture.file_name().unwrap_or_default().to_string_lossy();
        let results = self.markdown(&name);
        std::fs::write(page, format!("{before}{BEGIN}\n{results}{END}{after}"))
            .with_context(|| format!("cannot write {}", page.display()))?;
        if self.rings().next().is_none() {
            return Ok(());
        }
        self.draw(&picture).with_context(|| format!("cannot draw {}", picture.display()))
    }

    /// The ratios to the stock pair: ours as a bar with its quartiles, the limits as rings.
    fn draw(&self, path: &Path) -> Result<()> {
        const ROW: i32 = 64;
        const BLUE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
        const GREY: RGBColor = RGBColor(0x77, 0x77, 0x77);
        let rows = i32::try_from(self.rings().count()).unwrap_or(i32::MAX);
        let size = (900, u32::try_from(ROW.saturating_mul(rows).saturating_add(110)).unwrap_or(1000));
        let root = SVGBackend::new(path, size).into_drawing_area();
        root.fill(&WHITE)?;
        let furthest = self.rings().map(|(_, stock)| stock.ours_over_it.high).fold(1.1, f64::max).min(2.0);
        let mut chart = ChartBuilder::on(&root)
            .caption("Time a message, as a part of the stock pair's", ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(44)
            .build_cartesian_2d(0.0..furthest * 1.05, 0..rows * ROW)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_labels(11)
            .x_label_formatter(&|x| format!("{x:.1}"))
            .x_desc("less is faster; 1.0 is virtio-drivers with virtio-queue; whiskers are quartiles of rounds; rings are limits")
            .label_style(("sans-serif", 13))
            .draw()?;
        chart.draw_series([PathElement::new([(1.0, 0), (1.0, rows * ROW)], GREY.stroke_width(2))])?;
        for ((case, stock), row) in self.rings().zip((0..rows).rev()) {
            let (low, high) = (row * ROW + 12, row * ROW + 34);
            let middle = (low + high) / 2;
            let spread = stock.ours_over_it;
            chart.draw_series([Rectangle::new(
                [(0.0, low), (spread.median, high)],
                BLUE.mix(0.55).filled(),
            )])?;
            let whisker = |from: (f64, i32), to| PathElement::new([from, to], BLACK.stroke_width(2));
            chart.draw_series([
                whisker((spread.low, middle), (spread.high, middle)),
                whisker((spread.low, middle - 6), (spread.low, middle + 6)),
                whisker((spread.high, middle - 6), (spread.high, middle + 6)),
            ])?;
            chart.draw_series(
                case.limits
                    .iter()
                    .filter_map(|limit| limit.it_over_stock)
                    .map(|spread| Circle::new((spread.median, middle), 5, GREY.stroke_width(2))),
            )?;
            let (ours, stock) = (time(case.ours.nanoseconds), time(stock.nanoseconds));
            let label = format!("{}: {ours} of {stock}", case.title);
            chart.draw_series([Text::new(label, (0.005, high + 20), ("sans-serif", 15))])?;
        }
        if let Some(warning) = &self.quiet.warning {
            root.draw(&Text::new(warning.clone(), (20, 4), ("sans-serif", 13).into_font().color(&RED)))?;
        }
        root.present()?;
        Ok(())
    }
}

/// What stands before and after the results on a Markdown page; an error where it has no place for them, which is
/// worth knowing before anything is measured.
pub fn around_results(page: &Path) -> Result<(String, String)> {
    let text = std::fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let (Some((before, _)), Some((_, after))) = (text.split_once(BEGIN), text.split_once(END)) else {
        bail!("{} has no lines `{BEGIN}` and `{END}` to put the results between; add them", page.display());
    };
    Ok((before.to_string(), after.to_string()))
}

/// Where the results begin on a page.
const BEGIN: &str = "<!-- results: begin -->";
/// Where they end.
const END: &str = "<!-- results: end -->";

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &'static str, title: &'static str, bytes: Option<usize>) -> Case {
        Case { name, title, bytes, contenders: Vec::new() }
    }

    fn report() -> Report {
        let samples =
            vec![("ours", vec![10.0, 11.0]), ("stock", vec![20.0, 22.0]), ("a limit", vec![5.0, 5.5])];
        Report {
            machine: Machine::here(),
            quiet: Quiet { others_percent: 50.0, unsteady_percent: 0.0, warning: Some("Too busy.".into()) },
            rounds: 2,
            cases: [
                Outcome::new(&case("polled", "a round trip", None), samples),
                Outcome::new(
                    &case("9p", "a read", Some(1000)),
                    vec![("9p", vec![500.0, 500.0]), ("pread", vec![250.0, 250.0])],
                ),
            ]
            .into_iter()
            .flatten()
            .collect(),
            skipped: Some("SKIPPED: a case: no rights.".into()),
        }
    }

    #[test]
    fn results_replace_what_lies_between_the_marks_and_nothing_else() {
        let page = std::env::temp_dir().join(format!("hvl-bench-{}.md", std::process::id()));
        std::fs::write(&page, format!("before\n{BEGIN}\nold\n{END}\nafter\n")).expect("a writable place");
        report().write_page(&page).expect("marks are there");
        let text = std::fs::read_to_string(&page).expect("it was written");
        let picture = std::fs::read_to_string(page.with_extension("svg")).expect("it was drawn");
        for file in [&page, &page.with_extension("svg")] {
            std::fs::remove_file(file).expect("it is ours");
        }
        assert!(
            text.starts_with("before\n") && text.ends_with("\nafter\n") && !text.contains("old"),
            "{text}"
        );
        assert!(text.contains("| **0.50 (0.50–0.50)** | a limit | 5.2 ns | 2.00 (2.00–2.00) |"), "{text}");
        let link = "| a read | 500 ns, 2.00 GB/s | pread | 250 ns, 4.00 GB/s | **2.00 (2.00–2.00)** |";
        assert!(text.contains(link) && text.contains("- SKIPPED: a case: no rights."), "{text}");
        assert!(text.contains("Too busy.") && picture.contains("Too busy."), "a busy machine is marked");
    }

    #[test]
    fn only_three_quarters_of_the_rounds_are_a_win() {
        let outcome = |ours: Vec<f64>| {
            let samples = vec![("ours", ours), ("stock", vec![1.0; 4])];
            Outcome::new(&case("", "", None), samples).expect("both are there").won()
        };
        assert_eq!(outcome(vec![0.5, 0.5, 0.5, 0.9]), Some(true));
        assert_eq!(outcome(vec![0.5, 0.5, 2.0, 2.0]), Some(false));
        assert!(report().cases.iter().map(Outcome::won).eq([Some(true), None]), "no stock pair, no winner");
    }
}

//! The command lines of the project's pages, so that the program which reads such lines can be asked whether it takes
//! them: pages that nobody runs name options that were renamed long ago.

use std::path::Path;

/// A command line on a page.
#[derive(Debug)]
pub struct Line {
    /// Page and number of its first line.
    pub place: String,
    /// Its words; the first is the program, without its directory.
    pub words: Vec<String>,
}

/// The pages below the project's root, with their texts.
fn pages(root: &Path) -> Vec<(String, String)> {
    let docs = std::fs::read_dir(root.join("docs")).expect("docs");
    let docs = docs.map(|entry| entry.expect("docs").path());
    let mut pages: Vec<_> = docs.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    pages.push(root.join("README.md"));
    pages.sort();
    let text = |page: &Path| std::fs::read_to_string(page).expect("a page is text");
    pages
        .iter()
        .map(|page| (page.strip_prefix(root).unwrap_or(page).display().to_string(), text(page)))
        .collect()
}

/// The command lines that begin with these words in the blocks of the pages that are for a shell: ```` ```console ````,
/// ```` ```sh ```` and those of no language.
pub fn in_blocks(root: &Path, program: &[&str]) -> Vec<Line> {
    let mut found = Vec::new();
    for (page, text) in pages(root) {
        let mut language = None;
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            if let Some(fence) = line.trim_start().strip_prefix("```") {
                language = if language.is_some() { None } else { Some(fence) };
                continue;
            }
            if !matches!(language, Some("" | "console" | "sh" | "shell" | "bash")) {
                continue;
            }
            let mut whole = line.trim().trim_start_matches("$ ").to_string();
            while let Some(begin) = whole.strip_suffix('\\') {
                let next = lines.next().map_or("", |(_, line)| line.trim());
                whole = format!("{begin} {next}");
            }
            let words =
                whole.split_whitespace().take_while(|word| !matches!(*word, "#" | "&" | "|" | ">" | "&&"));
            let mut words: Vec<String> =
                words.map(|word| word.trim_matches(['\'', '"']).to_string()).collect();
            if words.first().is_some_and(|word| word == "sudo") {
                words.remove(0);
            }
            if let Some(first) = words.first_mut() {
                *first = first.rsplit('/').next().unwrap_or_default().to_string();
            }
            if words.iter().zip(program).filter(|(word, wanted)| word == *wanted).count() == program.len() {
                found.push(Line { place: format!("{page}:{}", number + 1), words });
            }
        }
    }
    found
}

/// The same for what stands in backquotes in the text; values there may be placeholders.
pub fn in_text(root: &Path, program: &[&str]) -> Vec<Line> {
    let begin = format!("{} ", program.join(" "));
    let mut found = Vec::new();
    for (page, text) in pages(root) {
        let mut block = false;
        // A span may go on in the next line, but not past a paragraph.
        let mut paragraph = (1, String::new());
        for (number, line) in text.lines().chain([""]).enumerate() {
            let fence = line.trim_start().starts_with("```");
            block ^= fence;
            if !fence && !block && !line.trim().is_empty() && !line.starts_with('|') {
                if paragraph.1.is_empty() {
                    paragraph.0 = number + 1;
                }
                paragraph.1 += line.trim();
                paragraph.1.push(' ');
                continue;
            }
            let ended = std::mem::take(&mut paragraph.1);
            let spans = [(paragraph.0, ended), (number + 1, line.to_string())];
            for (number, text) in spans.iter().filter(|(_, text)| !text.starts_with("```")) {
                for span in text.split('`').skip(1).step_by(2).filter(|span| span.starts_with(&begin)) {
                    let words = span.split_whitespace().map(str::to_string).collect();
                    found.push(Line { place: format!("{page}:{number}"), words });
                }
            }
        }
    }
    found
}

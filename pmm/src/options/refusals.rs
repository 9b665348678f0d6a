//! What is wrong with a command, gathered. Whoever wrote it mends it in one go instead of in a try for each mistake, so
//! nothing here ends at the first one; what depends on a word that was refused is not judged at all.

use std::collections::{HashMap, HashSet};

use crate::failure::Failure;
use crate::observe::printable;

/// The place of what was not written, and of what several words are wrong in together: behind all of them.
pub(super) const BEHIND_ALL: usize = usize::MAX;

/// What was refused, each with the place of the word that it is about.
#[derive(Debug, Default)]
pub(super) struct Refusals(Vec<(usize, String)>);

impl Refusals {
    /// Adds one. A value may hold anything, and a refusal is one line.
    pub(super) fn add(&mut self, at: usize, text: impl AsRef<str>) {
        self.0.push((at, printable(text.as_ref())));
    }

    /// Everything as one failure, in the order in which it was written; `None` if nothing is wrong.
    pub(super) fn failure(mut self) -> Option<Failure> {
        self.0.sort_by_key(|(at, _)| *at);
        let lines: Vec<String> = self.0.into_iter().map(|(_, text)| text).collect();
        (!lines.is_empty()).then(|| Failure::Misuse(lines.join("\n")))
    }
}

/// The options of a command line, or of a table in a file, by their names without dashes.
#[derive(Debug, Default)]
pub(super) struct Given {
    places: HashMap<String, usize>,
    refused: HashSet<String>,
    end: Option<usize>,
}

impl Given {
    /// Those of a table that ends here.
    pub(super) fn until(end: usize) -> Given {
        Given { end: Some(end), ..Given::default() }
    }

    /// Notes where an option stands; of one that repeats, the last place counts, as its value does.
    pub(super) fn note(&mut self, option: &str, at: usize) {
        self.places.insert(option.into(), at);
    }

    /// Notes that an option was refused: it is not missing, and its value is not known.
    pub(super) fn refuse(&mut self, option: &str) {
        self.refused.insert(option.into());
    }

    /// Where an option stands, or would.
    pub(super) fn place(&self, option: &str) -> usize {
        self.places.get(option).copied().or(self.end).unwrap_or(BEHIND_ALL)
    }

    /// Returns whether it was refused.
    pub(super) fn is_refused(&self, option: &str) -> bool {
        self.refused.contains(option)
    }
}

/// The candidate that a misspelt word most likely stands for, if one is near: a slip changes, drops, adds or swaps a
/// letter or two, seldom the first one, and a far guess is no help.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let far = (word.chars().count() / 3).max(1);
    let near = |candidate: &&str| {
        let distance = strsim::osa_distance(word, candidate);
        (distance <= far && candidate.chars().next() == word.chars().next()).then_some(distance)
    };
    let found = candidates.into_iter().filter_map(|candidate| Some((near(&candidate)?, candidate)));
    found.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

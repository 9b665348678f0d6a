//! A command line, taken apart into options with their values. clap stops at the first word that is wrong; each of these
//! can be shown to it alone, so that all that is wrong is told at once. What takes a value is asked of clap's own
//! tables, so the two cannot disagree on where an option ends.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

use super::refusals::nearest;

/// An option with its value, or a word that is none of either.
#[derive(Debug)]
pub(super) struct Typed {
    /// Which option it is or, as far as one can tell, is meant to be; without dashes.
    pub option: Option<String>,
    /// The words as they should be: with the right dashes, if it was only those.
    pub words: Vec<OsString>,
    /// What is wrong with the way in which the option itself is written.
    pub slip: Option<String>,
    /// Whether `words` are certainly what was meant.
    pub certain: bool,
}

/// Takes the words behind a command apart. `command` is built.
pub(super) fn take_apart(command: &Command, words: &[OsString]) -> Vec<Typed> {
    let mut rest = words;
    let mut all = Vec::new();
    while let Some((word, behind)) = rest.split_first() {
        rest = behind;
        all.push(take(command, word, &mut rest));
    }
    all
}

fn take(command: &Command, word: &OsStr, rest: &mut &[OsString]) -> Typed {
    let text = word.to_string_lossy();
    let find = |name: &str| command.get_arguments().find(|arg| arg.get_long() == Some(name));
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (&*text, None),
    };
    let mut typed = Typed { option: None, words: vec![word.into()], slip: None, certain: true };
    let bare = name.trim_start_matches('-');
    // How it should be written if only the dashes are wrong.
    let right = |name: &str| OsString::from(value.map_or(format!("--{name}"), |v| format!("--{name}={v}")));
    let arg = match () {
        () if text == "--" => {
            let meant = rest.first().and_then(|next| find(next.to_str()?).zip(next.to_str()));
            let Some((arg, meant)) = meant else {
                typed.slip = Some("'--': a bare '--' means nothing here; leave it out".into());
                typed.certain = false;
                return typed;
            };
            typed.slip = Some(format!(
                "'-- {meant}': a bare '--' means nothing here; if '--{meant}' is meant, write it without the space"
            ));
            typed.words = vec![format!("--{meant}").into()];
            *rest = rest.get(1..).unwrap_or(&[]);
            Some(arg)
        }
        () if !text.starts_with('-') || text == "-" => return typed,
        () if name.starts_with("--") && find(bare).is_some() => find(bare),
        () if name.starts_with("--") => None,
        // In kvmtool's habit. Shown to clap, '-pmm' would be '-p' with the value 'mm'.
        () if bare.len() > 1 && find(bare).is_some() => {
            let right = right(bare);
            typed.slip =
                Some(format!("{name}: options have two dashes; write '{}'", right.to_string_lossy()));
            typed.words = vec![right];
            find(bare)
        }
        () => {
            let short = bare.chars().next();
            let arg = command.get_arguments().find(|arg| short.is_some() && arg.get_short() == short);
            if let Some(arg) = arg
                && bare.chars().count() > 1
            {
                // Its value, or another short option, hangs on it.
                typed.option = arg.get_long().map(str::to_string);
                return typed;
            }
            arg
        }
    };
    let longs = command.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(Arg::get_long);
    let arg = arg.or_else(|| {
        let help = format!("'pmm {} --help' lists the options", command.get_name());
        let near = nearest(bare, longs);
        let hint = near.map_or(help.clone(), |near| format!("is '--{near}' meant? {help}"));
        typed.slip = Some(format!("{name}: unknown option; {hint}"));
        typed.certain = false;
        near.and_then(find)
    });
    typed.option = arg.and_then(Arg::get_long).map(str::to_string);
    let takes = arg.is_none_or(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set());
    if takes
        && value.is_none()
        && let Some((next, behind)) = rest.split_first()
        && (is_value(next) || arg.is_some_and(Arg::is_allow_hyphen_values_set))
    {
        typed.words.push(next.clone());
        *rest = behind;
    }
    typed
}

/// Returns whether a word can only be a value.
fn is_value(word: &OsStr) -> bool {
    word == "-" || !word.as_encoded_bytes().starts_with(b"-")
}

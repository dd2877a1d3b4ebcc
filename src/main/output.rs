//! What the program says on a terminal: results on standard output, a refusal as one line on standard error.

use std::fmt::Display;
use std::io::ErrorKind as IoErrorKind;
use std::io::Write;
use std::process::ExitCode;

use clap::ValueEnum;
use clap::error::ErrorKind;
use coffer::volume::Error;
use coffer::volume::Reason;
use coffer::volume::Result;
use serde::Serialize;

/// How a result is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints `value` in the form that was asked for. Records are shown before their MAC can be verified: text for a terminal
/// has nothing in it that would steer one.
pub(crate) fn show<T: Display + Serialize>(output: Output, value: &T) -> Result<()> {
    print(&match output {
        Output::Text => value.to_string().replace(|found: char| found.is_control() && found != '\n', "\u{fffd}"),
        Output::Json => serde_json::to_string_pretty(value).expect("texts, numbers and lists of them") + "\n",
    })
}

/// Writes to standard output. A reader that has gone away, such as `head`, has seen enough.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != IoErrorKind::BrokenPipe => {
            Err(Error::new(Reason::Internal, "standard output cannot be written").caused_by(error))
        }
        _ => Ok(()),
    }
}

/// Help goes to standard output; a refused command line is one line on standard error.
pub(crate) fn explain(refusal: &clap::Error) -> ExitCode {
    if matches!(refusal.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return print(&refusal.to_string()).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS);
    }
    if refusal.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprint!("{refusal}");
        return ExitCode::from(2);
    }
    let text = refusal.to_string();
    let what = text.split("\n\n").next().unwrap_or(&text);
    let line: Vec<&str> = what.split_whitespace().filter(|word| *word != "error:").collect();
    eprintln!("coffer: {} (see --help)", line.join(" "));
    ExitCode::from(2)
}

/// One line on standard error, and the status that says whether the configuration was wrong.
pub(crate) fn fail(error: &Error) -> ExitCode {
    eprintln!("coffer: {}", error.chain());
    ExitCode::from(if error.reason() == Reason::InvalidArgument { 2 } else { 1 })
}

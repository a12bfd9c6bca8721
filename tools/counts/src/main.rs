//! Counts the instructions of each piece of the hot path, and fails when one needs notably more than the
//! baseline says.
//!
//! Times differ from run to run and from machine to machine; instructions of pure code hardly do, so a
//! regression of a few percent can be told from noise on a busy machine. What they can't tell: cache
//! misses, and what the kernel does. `cargo bench` and `versus` are for those.

extern crate pure as beltway;

mod baseline;
mod callgrind;
#[path = "../../../benches/pieces/mod.rs"]
mod pieces;
mod subject;

use std::io;
use std::process::ExitCode;

use baseline::{Baseline, Conditions};

/// The command that makes a new baseline, for messages.
const RENEW: &str = "cargo run --profile counts -p counts -- --renew";

const USAGE: &str = "Counts the instructions of each piece of the hot path with valgrind.

Usage: cargo run --profile counts -p counts [-- OPTION]

Without an option the counts are compared with benches/instructions.txt: exit code 1 when a piece
needs over 5 % more. Where the conditions aren't those of the baseline (compiler, libc, valgrind,
processor), or valgrind is missing, nothing is compared, and the exit code is 0.

  --renew   write the counts to benches/instructions.txt
  --print   only print the counts";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [] => compare(),
        ["--renew"] => renew(),
        ["--print"] => callgrind::count().map(|counts| {
            counts
                .iter()
                .for_each(|(name, count)| println!("{name:<28} {count:>10.1}"));
            true
        }),
        [subject::ARGUMENT] => {
            subject::run();
            Ok(true)
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("counts: {error}");
            ExitCode::FAILURE
        }
    }
}

/// False when a piece has become slower, or isn't in the baseline.
fn compare() -> io::Result<bool> {
    if !optimised() {
        println!("SKIPPED: only optimised code is counted; run it with --profile counts");
        return Ok(true);
    }
    let Some(here) = Conditions::here()? else {
        println!("SKIPPED: valgrind is not installed");
        return Ok(true);
    };
    let baseline = Baseline::read()?;
    if let Some(difference) = baseline.conditions.difference(&here) {
        println!(
            "SKIPPED: the baseline can't be compared here: {difference}\n\
             where it should be, renew it: {RENEW}"
        );
        return Ok(true);
    }
    let verdict = baseline.compare(&callgrind::count()?);
    print!("{}", verdict.text());
    if !verdict.passes() {
        println!(
            "when that is meant to be so, renew the baseline and say why in the commit: {RENEW}"
        );
    }
    Ok(verdict.passes())
}

fn renew() -> io::Result<bool> {
    if !optimised() {
        return Err(io::Error::other(
            "run it with --profile counts: only optimised code is counted",
        ));
    }
    let conditions =
        Conditions::here()?.ok_or_else(|| io::Error::other("valgrind is not installed"))?;
    let baseline = Baseline {
        conditions,
        counts: callgrind::count()?,
    };
    baseline.write()?;
    println!(
        "{} pieces counted into {}",
        baseline.counts.len(),
        baseline::FILE
    );
    Ok(true)
}

fn optimised() -> bool {
    !cfg!(debug_assertions)
}

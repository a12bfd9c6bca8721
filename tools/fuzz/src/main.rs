//! Runs one fuzz target for a while: `cargo run -p beltway-fuzz -- TARGET --seconds N --seed S`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program for the terminal.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use beltway_fuzz::{TARGETS, find, run_bounded, run_for, run_one};

const USAGE: &str = "\
usage: beltway-fuzz TARGET [--seconds N | --runs N] [--seed S]
       beltway-fuzz TARGET FILE...      run these inputs alone
Without --seed the seed is 0; without --seconds and --runs it runs for 60 seconds.";

struct Options {
    target: String,
    seconds: u64,
    runs: Option<u64>,
    seed: u64,
    files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("beltway-fuzz: {error}\n{USAGE}\ntargets:{}", names());
            return ExitCode::from(2);
        }
    };
    let Some(target) = find(&options.target) else {
        eprintln!("no target {:?}; targets:{}", options.target, names());
        return ExitCode::from(2);
    };
    if !options.files.is_empty() {
        for file in &options.files {
            match fs::read(file) {
                Ok(input) => run_one(target, None, &input),
                Err(error) => {
                    eprintln!("{}: {error}", file.display());
                    return ExitCode::FAILURE;
                }
            }
        }
        println!("{}: {} files", target.name, options.files.len());
        return ExitCode::SUCCESS;
    }
    let runs = match options.runs {
        Some(runs) => {
            run_bounded(target, options.seed, runs);
            runs
        }
        None => run_for(target, options.seed, Duration::from_secs(options.seconds)),
    };
    println!("{}: {runs} inputs from seed {}", target.name, options.seed);
    ExitCode::SUCCESS
}

fn names() -> String {
    TARGETS.iter().map(|t| format!(" {}", t.name)).collect()
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        target: args.next().ok_or("a target is missing")?,
        seconds: 60,
        runs: None,
        seed: 0,
        files: Vec::new(),
    };
    while let Some(arg) = args.next() {
        let mut number = || {
            let value = args.next().ok_or(format!("{arg} needs a number"))?;
            value
                .parse()
                .map_err(|_| format!("{arg}: {value:?} is not a number"))
        };
        match arg.as_str() {
            "--seconds" => options.seconds = number()?,
            "--runs" => options.runs = Some(number()?),
            "--seed" => options.seed = number()?,
            _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
            _ => options.files.push(arg.into()),
        }
    }
    Ok(options)
}

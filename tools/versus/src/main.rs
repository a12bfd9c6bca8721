//! Measures Beltway beside its peers in one interleaved run, and says which figures it reaches.
//!
//! `versus` starts each server on one core and its own generator on another, peer after peer in every
//! round, so that what disturbs the machine disturbs all of them alike.

mod backend;
mod body;
mod certificate;
mod chart;
mod generate;
mod histogram;
mod interrupt;
mod launch;
mod measure;
mod peers;
mod procfs;
mod report;
mod stalls;
mod table;
mod verdict;
mod workload;
mod wrk;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::json;

use backend::BackendOptions;
use generate::GenerateOptions;
use launch::LaunchOptions;
use measure::{Bench, Plan};
use peers::{Family, Roster};
use report::Results;
use table::{Grid, Header};
use verdict::Summary;
use workload::{Cores, ON_ONE_CORE, Pace, Variants, Via, Workload};

/// Measures Beltway beside its peers in one interleaved run.
///
/// Run it as `cargo run --release -p versus`. Nothing else may run meanwhile, no build above all. Exits with 0 when everything was measured
/// without errors, whatever the figures; with 1 when there were errors.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Measure only these workloads, or groups of them: files, cold, proxy, tls, toggles
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    only: Vec<String>,
    /// Measure only these servers
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Family>,
    /// Times that each server is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds of load before each measurement
    #[arg(long, default_value_t = 0.3, value_parser = seconds)]
    warm_up: f64,
    /// Two rounds of one second: does it work, not how fast is it
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Write results.md and its charts into this directory as well
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Ask wrk as well, where it is installed
    #[arg(long)]
    wrk: bool,
    /// The Beltway to measure
    #[arg(long, value_name = "PATH", default_value = "target/release/beltway")]
    beltway: PathBuf,
    /// The directory in which the files are made; on a disk, or the cold ones are left out
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    files: PathBuf,
    /// Core of the servers
    #[arg(long, value_name = "CPU", default_value_t = 0)]
    server_cpu: usize,
    /// Core of the generator
    #[arg(long, value_name = "CPU", default_value_t = 1)]
    client_cpu: usize,
    /// A command to measure in Beltway's place, with {root}, {port}, {engine}, {backend}, {cert} and {key} in it
    #[arg(long, value_name = "COMMAND", hide = true)]
    ours: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Part {
    /// Measure one server that runs already, on this core; prints JSON
    Generate(GenerateOptions),
    /// Be what the proxies stand in front of
    #[command(hide = true)]
    Backend(BackendOptions),
    /// Become a program, bound to a core
    #[command(hide = true)]
    Launch(LaunchOptions),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.part {
        Some(Part::Backend(options)) => backend::run(options).map(|never| match never {}),
        Some(Part::Launch(options)) => Err(launch::launch(options)),
        Some(Part::Generate(options)) => generate(options),
        None => compare(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("versus: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Positive and bounded, so that every run ends.
fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.05..=600.0).contains(&value) {
        true => Ok(value),
        false => Err("between 0.05 and 600".to_owned()),
    }
}

/// The generator alone.
fn generate(options: &GenerateOptions) -> io::Result<bool> {
    launch::raise_descriptors();
    let report = generate::run(options)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(true)
}

/// The workloads of one kind, and the servers that can do them.
struct Half {
    workloads: Vec<Workload>,
    roster: Roster,
}

/// The whole programme. False when there were errors.
fn compare(options: &Options) -> io::Result<bool> {
    interrupt::install();
    let halves = halves(options)?;
    let plan = plan(options)?;
    let header = header(&plan, &halves)?;
    if cfg!(debug_assertions) {
        eprintln!("versus: built without optimisation, so the generator costs more than it should");
    }
    if !options.json {
        print!("{}", header.text());
    }
    let estimate: f64 = halves
        .iter()
        .map(|half| plan.estimate(&half.workloads, half.roster.peers.len()))
        .sum();
    eprintln!(
        "versus: this takes about {:.0} minutes",
        (estimate / 60.0).ceil()
    );
    let mut workloads: Vec<Workload> = Vec::new();
    let mut all: Vec<Vec<Summary>> = Vec::new();
    for Half {
        workloads: some,
        roster,
    } in halves
    {
        let mut bench = Bench::new(plan.clone(), roster.peers.clone(), &some)?;
        for workload in some {
            let measured = bench.measure(&workload)?;
            let mut summaries = verdict::summarise(&workload, &roster.peers, &measured);
            if workload.cores == Cores::All && workload.variants == Variants::Engines {
                let one = workloads
                    .iter()
                    .zip(&all)
                    .find(|(one, _)| one.name == ON_ONE_CORE);
                verdict::judge_scaling(&roster.peers, &mut summaries, one.map(|(_, one)| &one[..]));
            }
            if !options.json {
                print!("{}", Grid::new(&workload, &summaries).text());
            }
            workloads.push(workload);
            all.push(summaries);
        }
    }
    if let Some(directory) = &options.write {
        let results = Results {
            header: &header,
            workloads: &workloads,
            summaries: &all,
        };
        report::write(directory, &own_command(), &results)?;
    }
    match options.json {
        true => println!("{:#}", as_json(&header, &workloads, &all)),
        false => print!("{}", table::conclusion(&all)),
    }
    Ok(all.iter().flatten().all(Summary::clean))
}

/// How this run was started, as one does it in the project's directory.
fn own_command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!(
        "cargo build --release && cargo run --release -p versus -- {}",
        arguments.join(" ")
    )
}

/// What was asked for, with the peers that are there for it.
fn halves(options: &Options) -> io::Result<Vec<Half>> {
    let asked = |family| options.peers.is_empty() || options.peers.contains(&family);
    let chosen = workload::select(&options.only).map_err(io::Error::other)?;
    let memory = is_memory(&options.files)?;
    let mut halves = Vec::new();
    let proxy = Via::Proxy { keepalive: None };
    for (via, tls, variants) in [
        (Via::Files, false, Variants::Engines),
        (Via::Files, false, Variants::Cold),
        (proxy, false, Variants::Engines),
        (Via::Files, true, Variants::Engines),
        (proxy, true, Variants::Engines),
        (Via::Files, false, Variants::Toggles),
    ] {
        let mut workloads = chosen.clone();
        workloads.retain(|workload| {
            workload.tls.is_some() == tls
                && workload.variants == variants
                && (workload.via == Via::Files) == (via == Via::Files)
        });
        if memory {
            workloads.retain(|workload| workload.pace != Pace::Cold);
        }
        if workloads.is_empty() {
            continue;
        }
        let ours = options.ours.as_deref();
        let roster = peers::roster((via, tls, variants), asked, &options.beltway, ours);
        let roster = roster.map_err(io::Error::other)?;
        if roster.peers.is_empty() && !options.only.is_empty() {
            return Err(io::Error::other(format!(
                "nothing to measure with {}: {}",
                workloads[0].group(),
                roster.absent.join(", ")
            )));
        }
        if !roster.peers.is_empty() {
            halves.push(Half { workloads, roster });
        }
    }
    match halves.is_empty() {
        true => Err(io::Error::other("nothing to measure")),
        false => Ok(halves),
    }
}

fn plan(options: &Options) -> io::Result<Plan> {
    if options.server_cpu == options.client_cpu {
        return Err(io::Error::other(
            "the servers and the generator need a core each",
        ));
    }
    let (rounds, seconds) = match options.quick {
        true => (2, 1.0),
        false => (options.rounds.into(), options.seconds),
    };
    let wrk = wrk::find();
    if options.wrk && wrk.is_none() {
        return Err(io::Error::other("--wrk: wrk is not installed"));
    }
    Ok(Plan {
        rounds,
        seconds,
        warm_up: options.warm_up,
        server_cpu: options.server_cpu,
        all_cpus: launch::allowed_cpus()?,
        client_cpu: options.client_cpu,
        directory: options.files.clone(),
        descriptors: launch::raise_descriptors(),
        wrk: wrk.filter(|_| options.wrk),
    })
}

/// Whether the directory is in memory: nothing is cold there.
fn is_memory(directory: &Path) -> io::Result<bool> {
    /// `f_type` of a tmpfs (statfs(2)).
    const TMPFS: u64 = 0x0102_1994;
    Ok(rustix::fs::statfs(directory)?.f_type as u64 == TMPFS)
}

fn header(plan: &Plan, halves: &[Half]) -> io::Result<Header> {
    let files = &plan.directory;
    let memory = is_memory(files)?;
    let rosters = || halves.iter().map(|half| &half.roster);
    let mut absent: Vec<String> = rosters().flat_map(|one| one.absent.clone()).collect();
    absent.dedup();
    Ok(Header {
        congestion: procfs::congestion_control(),
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        cpu_model: procfs::cpu_model(),
        cpus: std::thread::available_parallelism()?.get(),
        server_cpu: plan.server_cpu,
        client_cpu: plan.client_cpu,
        rounds: plan.rounds,
        seconds: plan.seconds,
        warm_up: plan.warm_up,
        files: match memory {
            true => format!(
                "{}, a tmpfs: sendfile is not what it is on a disk, and no file is cold",
                files.display()
            ),
            false => files.display().to_string(),
        },
        peers: halves
            .iter()
            .flat_map(|half| {
                let group = half.workloads[0].group();
                half.roster.peers.iter().map(move |peer| {
                    [group, peer.name, &peer.version, peer.settings].map(str::to_owned)
                })
            })
            .collect(),
        absent,
    })
}

fn as_json(header: &Header, workloads: &[Workload], all: &[Vec<Summary>]) -> serde_json::Value {
    let workloads: Vec<serde_json::Value> = workloads
        .iter()
        .zip(all)
        .map(|(workload, summaries)| {
            json!({
                "name": workload.name,
                "title": workload.title,
                "via": workload.group(),
                "body_len": workload.body_len,
                "connections": workload.connections,
                "pace": format!("{:?}", workload.pace),
                "unit": workload.unit_name(),
                "peers": summaries,
            })
        })
        .collect();
    json!({ "header": header, "workloads": workloads })
}

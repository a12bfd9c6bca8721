//! `beltway tune`: measures where one way of sending becomes cheaper than another on this machine, shows
//! it, and writes the numbers where a start reads them.
//!
//! [`measure`] asks the kernel, [`judge`] and [`plot`] are pure.

mod judge;
mod measure;
mod plot;

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use rustix::fs::{CWD, Mode, OFlags, openat, renameat};

use self::judge::Costs;
use self::measure::{Rig, Route, Way};
use crate::config::tuning::{self, Host, Measured};

const EXAMPLES: &str = "\
Examples:
  beltway tune                         measure here, show it, and write the numbers
  sudo beltway tune /srv/www           for the server of this machine, on the disk of /srv/www
  beltway tune --quick --dry-run       a rough look, and nothing is written
  beltway tune --route 10.0.0.7:9      and what zero-copy costs on the way to that machine, which
                                       has to take all that comes: ncat -lk 9 > /dev/null
  beltway tune --json

It takes about 20 seconds, and measures what is right only where nothing else runs. Numbers of
another kernel or another machine are refused at the start, with a warning. `beltway status` and
`beltway doctor` say which numbers are in force.";

/// Depths of direct reads that are tried.
const DEPTHS: [usize; 4] = [1, 2, 4, 8];

/// How thoroughly it is measured.
#[derive(Clone, Copy)]
struct Plan {
    size_max: u64,
    /// Each cost is the least of so many rounds.
    rounds: usize,
    slot: Duration,
}

const WHOLE: Plan = Plan {
    size_max: 64 << 20,
    rounds: 4,
    slot: Duration::from_millis(40),
};

const QUICK: Plan = Plan {
    size_max: 4 << 20,
    rounds: 2,
    slot: Duration::from_millis(10),
};

pub(super) fn command() -> Command {
    Command::new("tune")
        .about("Measure on this machine from which sizes on which way of sending pays")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("directory")
                .value_name("DIR")
                .value_parser(clap::value_parser!(PathBuf))
                .default_value(".")
                .help("A directory on the disk that files are served from; needs 64 MiB there"),
        )
        .arg(
            Arg::new("route")
                .long("route")
                .value_name("ADDR:PORT")
                .value_parser(clap::value_parser!(SocketAddr))
                .help("Measure zero-copy to this peer too; loopback says nothing about it"),
        )
        .arg(switch("quick", "Measure for about 3 seconds, up to 4 MiB"))
        .arg(switch("dry-run", "Write nothing"))
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .conflicts_with("dry-run")
                .help(
                    "Where to write the numbers [default: /var/lib/beltway/tune.toml for root, else \
                     beltway/tune.toml in $XDG_STATE_HOME or ~/.local/state]",
                ),
        )
        .arg(super::json_arg())
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    match run(matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            super::complain(&format!("error: {what}\n"));
            ExitCode::from(super::exit::FAILED)
        }
    }
}

fn run(matches: &ArgMatches) -> Result<(), String> {
    let plan = if super::given(matches, "quick") {
        QUICK
    } else {
        WHOLE
    };
    let directory = matches.get_one::<PathBuf>("directory").cloned();
    let directory = directory.unwrap_or_else(|| ".".into());
    let directory = directory
        .canonicalize()
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    let peer = matches.get_one::<SocketAddr>("route").copied();
    let json = super::given(matches, "json");
    let mut notes = Vec::new();
    let costs = measure(plan, &directory, peer, &mut notes)?;
    let (tuning, keys) = costs.numbers();
    let measured = Measured {
        host: Host::this(),
        route: peer.map_or_else(|| "loopback".to_owned(), |peer| peer.to_string()),
        disk: directory.display().to_string(),
        tuning,
        keys,
    };
    let file = match matches.get_one::<PathBuf>("output") {
        _ if super::given(matches, "dry-run") => None,
        Some(file) => Some(file.clone()),
        None => tuning::files().into_iter().next(),
    };
    let written = file.map(|file| write(&file, &measured.to_toml()).map(|()| file));
    let terminal = io::stdout().is_terminal();
    super::say(&if json {
        let written = written.as_ref().and_then(|it| it.as_ref().ok());
        format!("{:#}\n", to_json(&costs, &measured, &notes, written))
    } else {
        to_text(&costs, &measured, &notes, super::color(terminal))
    });
    match written {
        None => {}
        Some(Ok(file)) if json => drop(file),
        Some(Ok(file)) => super::say(&format!(
            "\nwritten to {}: the next start works with it\n",
            file.display()
        )),
        Some(Err(what)) => return Err(what),
    }
    Ok(())
}

/// Measures everything that can be measured here; what can't be is a note.
fn measure(
    plan: Plan,
    directory: &Path,
    peer: Option<SocketAddr>,
    notes: &mut Vec<String>,
) -> Result<Costs, String> {
    let smaller = (0..9).map(|power| 1_u64 << (10 + power));
    let larger = (0..4).map(|power| 1_u64 << (20 + 2 * power));
    let sizes: Vec<u64> = smaller
        .chain(larger)
        .filter(|size| *size <= plan.size_max)
        .collect();
    let mut costs = Costs {
        sizes,
        ..Costs::default()
    };
    let mut rig = Rig::new(directory, plan.size_max, Route::Loopback)?;
    let here = [Way::Copy, Way::Pair, Way::Sendfile, Way::Relay, Way::Splice];
    rounds(plan, &mut rig, &here, &mut costs).map_err(|error| format!("measuring: {error}"))?;
    let length = plan.size_max;
    for depth in DEPTHS {
        let times = (0..plan.rounds.min(3)).map(|_| rig.direct(depth, length));
        match times.collect::<io::Result<Vec<_>>>() {
            Ok(times) => costs
                .direct
                .extend(times.into_iter().min().map(|it| (depth, it))),
            Err(error) => {
                let directory = directory.display();
                notes.push(format!(
                    "direct_depth wasn't measured: {directory} can't be read past the page cache: \
                     {error}"
                ));
                costs.direct.clear();
                break;
            }
        }
    }
    drop(rig);
    match peer {
        None => notes.push(
            "zerocopy_from wasn't measured: loopback always copies; give a peer with --route"
                .into(),
        ),
        Some(peer) => {
            let mut rig = Rig::new(directory, plan.size_max, Route::Peer(peer))?;
            let ways = [Way::Send, Way::ZeroCopy];
            let measured = rounds(plan, &mut rig, &ways, &mut costs);
            let why = match measured {
                Err(error) => Some(format!("{peer}: {error}")),
                Ok(()) if rig.copied => Some(format!(
                    "on the way to {peer} the kernel copies all the same: the route is local, or the \
                     network card can't gather"
                )),
                Ok(()) => None,
            };
            if let Some(why) = why {
                costs.of.retain(|(way, _)| !ways.contains(way));
                notes.push(format!("zerocopy_from wasn't measured: {why}"));
            }
        }
    }
    Ok(costs)
}

/// Measures these ways, round by round, so that what else the machine does meets them all.
fn rounds(plan: Plan, rig: &mut Rig, ways: &[Way], costs: &mut Costs) -> io::Result<()> {
    let mut rows: Vec<(Way, Vec<Option<Duration>>)> = ways
        .iter()
        .map(|way| (*way, vec![None; costs.sizes.len()]))
        .collect();
    for _ in 0..plan.rounds {
        for (index, size) in costs.sizes.iter().enumerate() {
            for (way, row) in rows.iter_mut().filter(|(way, _)| *size <= way.size_max()) {
                let cost = rig.cost(*way, *size, plan.slot)?;
                let least = row[index].map_or(cost, |before: Duration| before.min(cost));
                row[index] = Some(least);
            }
        }
    }
    costs.of.extend(rows);
    Ok(())
}

/// Writes the file whole or not at all, readable by everybody: it is the server's user that reads it.
fn write(file: &Path, text: &str) -> Result<(), String> {
    let failed = |error: io::Error| format!("can't write {}: {error}", file.display());
    let parent = file.parent().filter(|it| !it.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let name = file.file_name().ok_or_else(|| {
        let file = file.display();
        format!("can't write {file}: it names no file")
    })?;
    let mut draft = name.to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = parent.join(draft);
    // Not through a link that somebody has put there.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let written = openat(CWD, &draft, flags, mode)
        .map_err(io::Error::from)
        .and_then(|fd| io::Write::write_all(&mut std::fs::File::from(fd), text.as_bytes()))
        .and_then(|()| Ok(renameat(CWD, &draft, CWD, file)?));
    if written.is_err() {
        // What is left of it says nothing.
        let _ = std::fs::remove_file(&draft);
    }
    written.map_err(failed)
}

fn to_text(costs: &Costs, measured: &Measured, notes: &[String], colours: bool) -> String {
    let columns = rustix::termios::tcgetwinsize(io::stdout()).map(|size| usize::from(size.ws_col));
    let width = columns.ok().filter(|columns| *columns > 0).unwrap_or(96);
    let mut text = plot::plot(costs, width, colours);
    text.push('\n');
    text.push_str(&plot::table(costs));
    for (depth, time) in &costs.direct {
        let ms = time.as_secs_f64() * 1e3;
        text.push_str(&format!("  direct reads, {depth} at a time: {ms:.1} ms\n"));
    }
    text.push('\n');
    let tuning = measured.tuning;
    let lines = [
        ("copy_up_to", plot::size(tuning.copy_up_to)),
        ("sendfile_from", plot::size(tuning.sendfile_from)),
        ("splice_from", plot::size(tuning.splice_from)),
        (
            "zerocopy_from",
            tuning
                .zerocopy_from
                .map_or_else(|| "never".into(), plot::size),
        ),
        ("direct_depth", tuning.direct_depth.to_string()),
    ];
    for (name, value) in lines
        .iter()
        .filter(|(name, _)| measured.keys.contains(name))
    {
        text.push_str(&format!("{name:>14}: {value}\n"));
    }
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

fn to_json(
    costs: &Costs,
    measured: &Measured,
    notes: &[String],
    written: Option<&PathBuf>,
) -> serde_json::Value {
    let ns = |it: &Option<Duration>| it.map(|it| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX));
    let ways: serde_json::Map<String, serde_json::Value> = costs
        .of
        .iter()
        .map(|(way, row)| {
            let row: Vec<Option<u64>> = row.iter().map(ns).collect();
            (way.name().to_owned(), row.into())
        })
        .collect();
    let direct: Vec<_> = costs
        .direct
        .iter()
        .map(|(depth, time)| serde_json::json!({ "depth": depth, "ns": ns(&Some(*time)) }))
        .collect();
    let tuning = measured.tuning;
    let mut numbers = serde_json::json!({
        "copy_up_to": tuning.copy_up_to,
        "sendfile_from": tuning.sendfile_from,
        "splice_from": tuning.splice_from,
        "zerocopy_from": tuning.zerocopy_from,
        "direct_depth": tuning.direct_depth,
    });
    if let Some(numbers) = numbers.as_object_mut() {
        numbers.retain(|name, _| measured.keys.iter().any(|key| key == name));
    }
    serde_json::json!({
        "route": measured.route,
        "disk": measured.disk,
        "kernel": measured.host.kernel,
        "sizes": costs.sizes,
        "cpu_ns": ways,
        "direct": direct,
        "use": numbers,
        "notes": notes,
        "written": written,
    })
}

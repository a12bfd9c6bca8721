//! Checking a configuration with another binary, the one that an upgrade is about to run: a child that
//! is waited for without blocking, and killed when it takes too long.
//!
//! The child gets the [`Input`] as its standard input and answers on its standard output, both memory
//! files, so that neither side can block the other: a line of JSON, and behind it the bundle.

use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, prlimit};
use serde::{Deserialize, Serialize};

use super::children::OWN_VARIABLES;
use super::configuration::{Checked, Facts, check};
use super::machine::{self, ChangeId};
use super::upgrade;
use crate::config::sources::Input;
use crate::supervisor::channel::{self, blob, read_blob};

/// The hidden subcommand of the check.
pub const CHECK_COMMAND: &str = "check-for-upgrade";

/// The versions of all that goes from one binary to the next.
const SPEAKS: [u32; 3] = [
    channel::VERSION as u32,
    upgrade::VERSION as u32,
    machine::SNAPSHOT_VERSION,
];

/// Most bytes that the program may write: a bundle has 256 MiB at most.
const ANSWER_MAX: u64 = 272 << 20;

/// The first line of the answer.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// The version of the program.
    version: String,
    /// The versions of what it takes over from a running master: channel, handover, state machine.
    speaks: [u32; 3],
    /// What the master has to know, or what is wrong in whole lines.
    result: Result<Facts, String>,
}

/// What the new binary has said.
#[derive(Debug)]
pub(super) struct Passed {
    /// Its version.
    pub(super) version: String,
    /// The configuration as it understands it.
    pub(super) checked: Checked,
}

/// Why an upgrade can't go on.
#[derive(Debug)]
pub(super) struct Refused {
    /// Whole lines.
    pub(super) text: String,
    /// The configuration is at fault.
    pub(super) configuration: bool,
}

/// A check that runs.
pub(super) struct Check {
    /// The change that it is for.
    pub(super) change: ChangeId,
    child: Child,
    pidfd: OwnedFd,
    answer: std::fs::File,
}

impl Check {
    /// Starts the program behind `image`.
    ///
    /// # Errors
    /// When it can't be started, such as ENOEXEC for what is no program.
    pub(super) fn start(
        image: BorrowedFd<'_>,
        input: &Input,
        change: ChangeId,
    ) -> io::Result<Self> {
        let question = blob("beltway-input", &serde_json::to_vec(input)?)?;
        std::fs::File::from(question.try_clone()?).rewind()?;
        let answer = rustix::fs::memfd_create("beltway-answer", MemfdFlags::CLOEXEC)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()));
        command
            .arg0("beltway:")
            .arg(CHECK_COMMAND)
            .stdin(Stdio::from(question))
            .stdout(Stdio::from(answer.try_clone()?))
            .process_group(0);
        for variable in OWN_VARIABLES {
            command.env_remove(variable);
        }
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let bound = Rlimit {
            current: Some(ANSWER_MAX),
            maximum: Some(ANSWER_MAX),
        };
        // A program that is none of ours may write for ever. Without the bound it ends at the timeout.
        let _ = prlimit(Some(pid), Resource::Fsize, bound);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                change,
                child,
                pidfd,
                answer: answer.into(),
            }),
            Err(errno) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(errno.into())
            }
        }
    }

    /// Readable when the program has ended.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What the program has said, once it has ended.
    pub(super) fn result(&mut self) -> Option<Result<Passed, Refused>> {
        let status = match self.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        Some(read_answer(&self.answer).unwrap_or_else(|why| {
            Err(Refused {
                text: format!(
                    "error: the new binary did not check the configuration ({status}; {why})\n  = \
                     help: is it this version of Beltway or a later one, for this machine?\n"
                ),
                configuration: false,
            })
        }))
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        // Neither fails for our own child; one that has ended was reaped by `result`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// # Errors
/// Why it isn't an answer.
fn read_answer(answer: &std::fs::File) -> Result<Result<Passed, Refused>, String> {
    let bytes = read_blob(answer).map_err(|error| error.to_string())?;
    let line = memchr::memchr(b'\n', &bytes).ok_or("it said nothing")?;
    let answer: Answer = serde_json::from_slice(&bytes[..line]).map_err(|e| e.to_string())?;
    if answer.speaks != SPEAKS {
        return Ok(Err(Refused {
            text: format!(
                "error: version {} can't take over from this one while it runs\n  = help: restart the \
                 service once\n",
                answer.version
            ),
            configuration: false,
        }));
    }
    Ok(match answer.result {
        Ok(facts) => Ok(Passed {
            version: answer.version,
            checked: Checked {
                facts,
                bundle: bytes[line + 1..].to_vec(),
                loaded: None,
            },
        }),
        Err(text) => Err(Refused {
            text,
            configuration: true,
        }),
    })
}

/// The other side: reads the input from the standard input, and answers.
///
/// # Errors
/// When the standard input has none, or nothing can be answered.
pub fn main() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    let input: Input = serde_json::from_str(&text)?;
    let (result, bundle) = match check(&input, false) {
        Ok(checked) => (Ok(checked.facts), checked.bundle),
        Err(text) => (Err(text), Vec::new()),
    };
    let answer = Answer {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        speaks: SPEAKS,
        result,
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    out.write_all(b"\n")?;
    out.write_all(&bundle)?;
    out.flush()
}

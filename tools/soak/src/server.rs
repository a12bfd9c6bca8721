//! A Beltway under its master: started, told what to do, watched, ended.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::backend::Backend;
use crate::files;

/// How long what runs may go on in workers that are replaced.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// Longest wait for a command, a start or an end.
const PATIENCE: Duration = Duration::from_secs(40);

const STEP: Duration = Duration::from_millis(50);

/// How the configuration is varied.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Variant {
    /// A field of every answer: taken over in place.
    pub(crate) epoch: u64,
    /// The format of the log: another one takes another generation.
    pub(crate) json_log: bool,
}

/// A server that runs.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    engine: String,
    program: PathBuf,
    directory: PathBuf,
    backends: [SocketAddr; 2],
    child: Child,
}

impl Server {
    /// Starts one with this engine, whose files are in `directory`.
    ///
    /// # Errors
    /// When it doesn't serve in time; the end of its log says why.
    pub(crate) fn start(
        program: &Path,
        engine: &str,
        directory: &Path,
        [steady, unruly]: [&Backend; 2],
    ) -> io::Result<Self> {
        // The worker of a master that is root is somebody else.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(directory.join("files"))?;
        files::write(&directory.join("files"))?;
        // An upgrade starts what is at this path then.
        let own = directory.join("beltway");
        if fs::hard_link(program, &own).is_err() {
            fs::copy(program, &own)?;
        }
        let backends = [steady.address, unruly.address];
        let config = config(engine, directory, backends, Variant::default());
        fs::write(directory.join("beltway.toml"), config)?;
        let log = File::create(directory.join("log"))?;
        let child = Command::new(&own)
            .arg("run")
            .args(arguments(directory))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            engine: engine.to_owned(),
            program: own,
            directory: directory.to_owned(),
            backends,
            child,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(address) = server.status().ok().as_ref().and_then(serving) {
                server.address = address;
                return Ok(server);
            }
            let ended = server.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "it doesn't serve: {}",
                    server.log_end()
                )));
            }
            thread::sleep(STEP);
        }
    }

    /// The master.
    pub(crate) fn master(&self) -> u32 {
        self.child.id()
    }

    /// What `beltway status` says.
    pub(crate) fn status(&self) -> io::Result<Value> {
        Ok(serde_json::from_str(&self.command(&["status", "--json"])?)?)
    }

    /// The workers that take new connections.
    pub(crate) fn serving_workers(&self) -> io::Result<Vec<u32>> {
        let status = self.status()?;
        let generations = status["generations"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let serving = generations.iter().filter(|one| one["state"] == "serving");
        Ok(serving
            .flat_map(|one| one["workers"].as_array().cloned().unwrap_or_default())
            .filter_map(|worker| worker["pid"].as_u64()?.try_into().ok())
            .collect())
    }

    /// Takes over a variant of the configuration, and waits until it is in force.
    pub(crate) fn reload(&self, variant: Variant) -> io::Result<()> {
        let text = config(&self.engine, &self.directory, self.backends, variant);
        let new = self.directory.join("beltway.toml.new");
        fs::write(&new, text)?;
        fs::rename(new, self.directory.join("beltway.toml"))?;
        self.command(&["reload"]).map(drop)
    }

    /// Lets the same program take over from itself.
    pub(crate) fn upgrade(&self) -> io::Result<()> {
        self.command(&["upgrade"]).map(drop)
    }

    /// Rotates the access log; the old one is thrown away.
    pub(crate) fn rotate(&self) -> io::Result<()> {
        fs::remove_file(self.directory.join("access.log"))?;
        self.command(&["reopen"]).map(drop)
    }

    /// Replaces the file that is replaced.
    pub(crate) fn replace_file(&self, number: u64) -> io::Result<()> {
        files::replace(&self.directory.join("files"), number)
    }

    /// Kills a worker, if it is still a child of the master.
    pub(crate) fn kill(&self, worker: u32) -> io::Result<()> {
        let stat = fs::read_to_string(format!("/proc/{worker}/stat"))?;
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split(' ').nth(2));
        let pid = i32::try_from(worker).ok().and_then(Pid::from_raw);
        match pid.filter(|_| parent == Some(self.master().to_string().as_str())) {
            Some(pid) => Ok(kill_process(pid, Signal::KILL)?),
            None => Err(io::Error::other(format!("{worker} isn't a worker"))),
        }
    }

    /// Ends it, in order.
    ///
    /// # Errors
    /// When it says that it has not ended well.
    pub(crate) fn stop(mut self) -> io::Result<()> {
        self.command(&["stop"])?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(io::Error::other(format!("the master: {status}"))),
                None if Instant::now() > deadline => {
                    return Err(io::Error::other("the master runs on after a stop"));
                }
                None => thread::sleep(STEP),
            }
        }
    }

    /// The last lines of its log.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n    ")
    }

    /// Runs a command for this server and gives what it prints.
    fn command(&self, words: &[&str]) -> io::Result<String> {
        let output = Command::new(&self.program)
            .args(words)
            .args(arguments(&self.directory))
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let words = words.join(" ");
            return Err(io::Error::other(format!(
                "beltway {words}: {}: {text}",
                output.status
            )));
        }
        String::from_utf8(output.stdout).map_err(io::Error::other)
    }
}

impl Drop for Server {
    /// Nothing is left behind when a run is broken off: a second TERM ends without waiting.
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let deadline = Instant::now() + DRAIN;
        while let (Ok(None), Some(pid)) = (self.child.try_wait(), pid) {
            if Instant::now() > deadline {
                // It fails only when the child has ended.
                let _ = self.child.kill();
            }
            // As above.
            let _ = kill_process(pid, Signal::TERM);
            thread::sleep(STEP);
        }
    }
}

fn arguments(directory: &Path) -> [PathBuf; 4] {
    let of = |name: &str| directory.join(name);
    [
        "-c".into(),
        of("beltway.toml"),
        "--control".into(),
        of("control.sock"),
    ]
}

/// The address, once a generation serves.
fn serving(status: &Value) -> Option<SocketAddr> {
    let mut generations = status["generations"].as_array()?.iter();
    generations.find(|one| one["state"] == "serving")?;
    status["listeners"][0].as_str()?.parse().ok()
}

fn config(
    engine: &str,
    directory: &Path,
    [steady, unruly]: [SocketAddr; 2],
    variant: Variant,
) -> String {
    let (directory, drain) = (directory.display(), DRAIN.as_secs());
    let format = if variant.json_log { "json" } else { "combined" };
    let epoch = variant.epoch;
    format!(
        r#"[server]
workers = 2
engine = "{engine}"
drain_timeout = "{drain}s"
access_log = "{directory}/access.log"
log_format = "{format}"
log_level = "warn"

[site."*"]
listen = ["127.0.0.1:0"]
root = "{directory}/files"

[site."*".headers]
X-Epoch = "{epoch}"

[site."*".routes]
"=/ok"      = {{ respond = 200, body = "ok" }}
"/app/*"    = {{ proxy = "steady" }}
"/unruly/*" = {{ proxy = "unruly", timeouts = {{ head = "1s" }} }}

[upstream.steady]
servers = ["{steady}"]
keepalive = {{ timeout = "1s" }}

[upstream.unruly]
servers = ["{unruly}"]
keepalive = {{ timeout = "1s" }}
"#
    )
}

//! A server process, its output, and its end.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, SockAddr};

use super::child::{self, Before};
use super::{Client, Engine, PATIENCE, Tree, wait_for};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_beltway");

/// Name of the configuration file of `run`.
const CONFIG: &str = "beltway.toml";

/// Name of its control socket, beside it.
const CONTROL: &str = "control.sock";

/// A command that runs the program without what the environment of the tests may have set.
pub(crate) fn program() -> Command {
    command_of(Path::new(PROGRAM))
}

fn command_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BELTWAY_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// How a server is started.
pub(crate) struct Setup {
    program: PathBuf,
    engine: Option<Engine>,
    workers: Option<usize>,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    directory: Option<PathBuf>,
    listeners: usize,
    before: Before,
    config: Option<tempfile::TempDir>,
    hold_stdout: bool,
    activated: Option<(OwnedFd, String)>,
}

impl Setup {
    /// `beltway serve ROOT` on a free port.
    pub(crate) fn serve(engine: Engine, root: impl AsRef<Path>) -> Self {
        let root = root.as_ref().as_os_str().to_owned();
        Self::command(engine, vec!["serve".into(), root]).arguments(&["-l", "127.0.0.1:0"])
    }

    /// `beltway proxy TO` on a free port.
    pub(crate) fn proxy(engine: Engine, to: &str) -> Self {
        let setup = Self::command(engine, vec!["proxy".into(), to.into()]);
        setup.arguments(&["-l", "127.0.0.1:0"])
    }

    /// `beltway` alone: as a user types it who knows nothing of it.
    pub(crate) fn bare() -> Self {
        let mut setup = Self::command(Engine::Epoll, Vec::new());
        setup.engine = None;
        setup.workers = None;
        setup
    }

    /// `beltway run -c FILE` with this text.
    pub(crate) fn run(engine: Engine, config: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join(CONFIG);
        fs::write(&file, config).expect("the configuration");
        // Not where servers of this machine have theirs.
        let control = directory.path().join(CONTROL).into();
        let arguments = vec![
            "run".into(),
            "-c".into(),
            file.into(),
            "--control".into(),
            control,
        ];
        let mut setup = Self::command(engine, arguments);
        setup.config = Some(directory);
        setup
    }

    /// Another program in the place of the one under test, such as a copy that is replaced later.
    pub(crate) fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    fn command(engine: Engine, arguments: Vec<OsString>) -> Self {
        Self {
            program: PROGRAM.into(),
            engine: Some(engine),
            workers: Some(1),
            arguments,
            environment: Vec::new(),
            directory: None,
            listeners: 1,
            before: Before::default(),
            config: None,
            hold_stdout: false,
            activated: None,
        }
    }

    /// Nobody reads its standard output until [`Server::release_stdout`].
    pub(crate) fn hold_stdout(mut self) -> Self {
        self.hold_stdout = true;
        self
    }

    /// Further arguments.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts it in this directory.
    pub(crate) fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// With this many threads instead of one.
    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// With as many threads as its file says.
    pub(crate) fn workers_of_the_file(mut self) -> Self {
        self.workers = None;
        self
    }

    /// With a listening socket of this name, as a service manager hands one over (sd_listen_fds(3)).
    pub(crate) fn activated(mut self, socket: OwnedFd, name: &str) -> Self {
        self.activated = Some((socket, name.to_owned()));
        self
    }

    /// The server chooses its engine.
    pub(crate) fn engine_auto(mut self) -> Self {
        self.engine = None;
        self
    }

    /// It has this many sockets, all of which are waited for.
    pub(crate) fn listeners(mut self, listeners: usize) -> Self {
        self.listeners = listeners;
        self
    }

    /// What is done in the child before the program starts.
    pub(crate) fn before(mut self, before: Before) -> Self {
        self.before = before;
        self
    }

    /// The command, without its output.
    fn build(&mut self) -> Command {
        let mut command = command_of(&self.program);
        if let Some((socket, name)) = self.activated.take() {
            // Only the process itself knows its number, and only a shell puts it into a variable.
            command = command_of(Path::new("/bin/sh"));
            let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"";
            command
                .args(["-c", script])
                .arg(&self.program)
                .env("LISTEN_FDS", "1")
                .env("LISTEN_FDNAMES", name)
                .stdin(Stdio::from(socket));
        }
        command
            .args(&self.arguments)
            .args(self.workers.map(|count| format!("--workers={count}")))
            .envs(self.environment.iter().cloned());
        if let Some(engine) = self.engine {
            command.arg(engine.flag());
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        child::restrict(&mut command, self.before);
        command
    }

    /// Starts the server and waits until it listens.
    pub(crate) fn start(mut self) -> Server {
        let mut child = self
            .build()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (stdout, held) = if self.hold_stdout {
            (Collected::default(), Some(stdout))
        } else {
            (collect(stdout), None)
        };
        let stderr = collect(child.stderr.take().expect("stderr is a pipe"));
        let mut server = Server {
            child,
            status: None,
            stdout,
            held: Mutex::new(held),
            stderr,
            addresses: Vec::new(),
            config: self.config,
        };
        server.await_listening(self.listeners);
        if let Some(engine) = self.engine {
            wait_for("the engine is named", PATIENCE, || {
                server.stderr().contains("engine=").then_some(())
            });
            assert!(server.stderr().contains(engine.line()), "another engine");
        }
        server
    }

    /// Runs it to its end, which must come soon: a start that fails.
    pub(crate) fn fail(mut self) -> Output {
        output(&mut self.build())
    }
}

/// Starts `beltway serve` for the tree.
pub(crate) fn serve(engine: Engine, tree: &Tree, arguments: &[&str]) -> Server {
    Setup::serve(engine, tree.root())
        .arguments(arguments)
        .start()
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
    /// What it wrote to standard error.
    pub(crate) stderr: String,
}

/// Runs a command to its end, within a deadline.
pub(crate) fn output(command: &mut Command) -> Output {
    output_within(PATIENCE, command)
}

/// Runs a command to its end, which may take so long.
pub(crate) fn output_within(patience: Duration, command: &mut Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stdout = collect(child.stdout.take().expect("stdout is a pipe"));
    let stderr = collect(child.stderr.take().expect("stderr is a pipe"));
    let deadline = std::time::Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        if std::time::Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} did not end:\n{}", stderr.text());
        }
        thread::park_timeout(Duration::from_millis(2));
    };
    wait_for("the output ends", PATIENCE, || {
        (stdout.ended() && stderr.ended()).then_some(())
    });
    Output {
        code: status.code(),
        stdout: stdout.text(),
        stderr: stderr.text(),
    }
}

/// A socket of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Its domain and socket address.
    pub(crate) fn socket(&self) -> (Domain, SockAddr) {
        match self {
            Self::Tcp(address) => (Domain::for_address(*address), (*address).into()),
            Self::Unix(path) => (
                Domain::UNIX,
                SockAddr::unix(path).expect("a path that fits"),
            ),
        }
    }
}

/// The addresses in the lines `… listening on http://127.0.0.1:8080/ …`.
fn listening(stderr: &str) -> Vec<Address> {
    stderr
        .lines()
        .filter_map(|line| line.split_once("listening on "))
        .map(|(_, rest)| {
            let word = rest.split_ascii_whitespace().next().unwrap_or_default();
            match word.strip_prefix("unix:") {
                Some(path) => Address::Unix(path.into()),
                None => {
                    let (_, authority) = word.split_once("://").expect("a URL");
                    let authority = authority.trim_end_matches('/');
                    Address::Tcp(authority.parse().expect("an address and a port"))
                }
            }
        })
        .collect()
}

/// The output of a process, as it comes.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<(String, bool)>>);

impl Collected {
    fn text(&self) -> String {
        self.0.lock().expect("no reader panics").0.clone()
    }

    fn ended(&self) -> bool {
        self.0.lock().expect("no reader panics").1
    }
}

fn collect(stream: impl Read + Send + 'static) -> Collected {
    let collected = Collected::default();
    collect_into(stream, collected.clone());
    collected
}

fn collect_into(stream: impl Read + Send + 'static, writer: Collected) {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(stream.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let mut text = writer.0.lock().expect("no reader panics");
            text.0.push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
        writer.0.lock().expect("no reader panics").1 = true;
    });
}

/// A server that runs. It is killed when this is dropped; when a test has failed its output is shown.
pub(crate) struct Server {
    child: Child,
    status: Option<ExitStatus>,
    stdout: Collected,
    held: Mutex<Option<ChildStdout>>,
    stderr: Collected,
    addresses: Vec<Address>,
    config: Option<tempfile::TempDir>,
}

impl Server {
    fn await_listening(&mut self, listeners: usize) {
        self.addresses = wait_for("the server listens", PATIENCE, || {
            assert!(self.ended().is_none(), "the server ended at its start");
            let addresses = listening(&self.stderr());
            (addresses.len() >= listeners).then_some(addresses)
        });
    }

    /// Begins to read its standard output.
    pub(crate) fn release_stdout(&self) {
        let mut held = self.held.lock().expect("nobody panics with it");
        collect_into(held.take().expect("it was held"), self.stdout.clone());
    }

    /// Its first socket.
    pub(crate) fn address(&self) -> &Address {
        &self.addresses[0]
    }

    /// All its sockets, in the order in which it named them.
    pub(crate) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// A new connection to its first socket.
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// The directory of its configuration file.
    fn config_directory(&self) -> &Path {
        self.config.as_ref().expect("it runs with a file").path()
    }

    /// Its configuration file.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.config_directory().join(CONFIG)
    }

    /// Puts another text into its configuration file, at one go.
    pub(crate) fn write_config(&self, text: &str) {
        let new = self.config_directory().join("new.toml");
        fs::write(&new, text).expect("the configuration");
        fs::rename(new, self.config_file()).expect("a rename");
    }

    /// Runs a command about it to its end: `reload`, `status`, `stop` …
    pub(crate) fn control(&self, arguments: &[&str]) -> Output {
        let mut command = program();
        command
            .args(arguments)
            .arg("-c")
            .arg(self.config_file())
            .arg("--control")
            .arg(self.config_directory().join(CONTROL));
        output(&mut command)
    }

    /// Asks the control socket itself, without a program between: quick enough for hundreds.
    pub(crate) fn ask(&self, command: &str) -> serde_json::Value {
        let path = self.config_directory().join(CONTROL);
        let mut socket = std::os::unix::net::UnixStream::connect(path).expect("the control socket");
        socket
            .set_read_timeout(Some(3 * PATIENCE))
            .expect("a timeout");
        let request = format!("{{\"version\":1,\"command\":\"{command}\"}}\n");
        socket.write_all(request.as_bytes()).expect("a request");
        let mut reply = String::new();
        socket.read_to_string(&mut reply).expect("a reply");
        serde_json::from_str(&reply).unwrap_or_else(|error| panic!("{error}: {reply:?}"))
    }

    /// Asks the control socket, which has to do it.
    #[track_caller]
    pub(crate) fn ask_must(&self, command: &str) -> serde_json::Value {
        let reply = self.ask(command);
        assert_eq!(reply["exit"], 0, "{command}: {reply}");
        reply
    }

    /// Runs a command about it, which has to succeed.
    #[track_caller]
    pub(crate) fn must(&self, arguments: &[&str]) -> Output {
        let output = self.control(arguments);
        assert_eq!(output.code, Some(0), "{arguments:?}: {output:?}");
        output
    }

    /// What `status --json` tells.
    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self.must(&["status", "--json"]);
        serde_json::from_str(&output.stdout).expect("JSON")
    }

    /// How many connections are open, on all cores of all workers.
    pub(crate) fn open_connections(&self) -> u64 {
        let status = self.status();
        let list = |of: &serde_json::Value, key: &str| of[key].as_array().expect("a list").clone();
        let workers = list(&status, "generations")
            .into_iter()
            .flat_map(|generation| list(&generation, "workers"));
        let cores = workers.flat_map(|worker| list(&worker, "cores"));
        cores
            .map(|core| core["connections"].as_u64().expect("a number"))
            .sum()
    }

    /// What the worker tells of its sandbox; `None`, with a word, where this kernel lacks a part of it.
    pub(crate) fn whole_sandbox(&self) -> Option<serde_json::Value> {
        let sandbox = self.status()["generations"][0]["workers"][0]["sandbox"].take();
        let missing = sandbox["missing"].as_array().expect("a list");
        if !missing.is_empty() {
            crate::support::skipped(format_args!(
                "this kernel lacks a part of the sandbox: {missing:?}"
            ));
            return None;
        }
        Some(sandbox)
    }

    /// Process ids of the workers of generations in this state, oldest generation first.
    pub(crate) fn workers(&self, state: &str) -> Vec<u32> {
        let status = self.status();
        let generations = status["generations"].as_array().expect("generations");
        let mut pids: Vec<u32> = generations
            .iter()
            .rev()
            .filter(|generation| generation["state"] == state)
            .flat_map(|generation| generation["workers"].as_array().expect("workers"))
            .map(|worker| worker["pid"].as_u64().expect("a pid") as u32)
            .collect();
        pids.retain(|pid| *pid > 0);
        pids
    }

    /// The one worker that serves.
    pub(crate) fn worker(&self) -> u32 {
        wait_for("a worker serves", PATIENCE, || {
            let workers = self.workers("serving");
            (workers.len() == 1).then(|| workers[0])
        })
    }

    /// The addresses that it has named until now, each once, in their order.
    pub(crate) fn named_addresses(&self) -> Vec<Address> {
        let mut addresses = listening(&self.stderr());
        let mut seen = Vec::new();
        addresses.retain(|address| {
            let new = !seen.contains(address);
            seen.push(address.clone());
            new
        });
        addresses
    }

    /// A client that has a download under way and reads nothing of it for now.
    pub(crate) fn download(&self, target: &str) -> Client {
        let mut client = Client::connect_with(self.address(), |socket| {
            socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        });
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.await_bytes(1);
        client
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// What it has written to standard output.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        // It was not waited for, so its id can't be another's.
        kill_process(pid.expect("a process id"), signal).expect("it runs");
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("our child");
        }
        self.status
    }

    /// Waits for its end. Gives the exit code, `None` for the death by a signal.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let status = wait_for("the server ends", PATIENCE, || self.ended());
        status.code()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("it runs")
            .count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
        if thread::panicking() {
            eprintln!(
                "--- the server's standard error ({:?}):\n{}--- its standard output:\n{}",
                self.status,
                self.stderr(),
                self.stdout()
            );
        }
    }
}

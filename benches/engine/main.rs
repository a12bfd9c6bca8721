//! What tasks cost on top of the kernel's calls: `cargo bench --bench engine [-- ROUNDS REQUESTS]`.
//!
//! The same responder four times: a loop over completions and one over readiness, written by hand, and
//! tasks on our own core with each engine. None of them parses: a request is so many bytes, the answer
//! is fixed and copied into a buffer of the connection, and each answer is one send. All are processes of
//! their own on the first CPU; the load runs on the second one and asks a fixed number of times over 64
//! connections. What is compared is the processor time of the process per request, user and kernel, in
//! interleaved rounds. Needs a quiet machine with two CPUs.
#![expect(clippy::print_stdout, reason = "this is what the program is for")]

mod by_completion;
mod by_readiness;
mod load;
mod tasks;

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};

/// Connections that ask at the same time.
const CONNECTIONS: usize = 64;
const ROUNDS: usize = 10;
/// Requests of a measurement, after a tenth as many that aren't counted.
const REQUESTS: u64 = 300_000;

/// What asks; nothing in it is looked at, but its length.
const REQUEST: &[u8] = b"GET /1k HTTP/1.1\r\nHost: www.example.com\r\nAccept: */*\r\n\r\n";

/// A head and 1 KiB of content.
fn answer() -> Vec<u8> {
    let head = b"HTTP/1.1 200 OK\r\nServer: Beltway\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n";
    [&head[..], &[b'x'; 1024]].concat()
}

/// A way to serve, and how it is called.
type Way = (&'static str, fn(TcpListener, &[u8]));

const WAYS: [Way; 4] = [
    ("io_uring by hand", by_completion::serve),
    ("io_uring by tasks", tasks::serve_by_completion),
    ("epoll by hand", by_readiness::serve),
    ("epoll by tasks", tasks::serve_by_readiness),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, way] = &arguments[..]
        && serve == "serve"
    {
        return serve_as(way);
    }
    let mut numbers = arguments.iter().filter_map(|text| text.parse::<u64>().ok());
    let rounds = numbers
        .next()
        .map_or(ROUNDS, |rounds| rounds.max(1) as usize);
    let requests = numbers
        .next()
        .map_or(REQUESTS, |requests| requests.max(1000));
    on_cpu(1);
    let mut times = [const { Vec::new() }; WAYS.len()];
    for _ in 0..rounds {
        for ((way, _), times) in WAYS.iter().zip(&mut times) {
            times.push(measure(way, requests));
        }
    }
    println!("{rounds} rounds of {requests} requests, {CONNECTIONS} connections");
    for ((way, _), times) in WAYS.iter().zip(&times) {
        let (median, least, most) = middle(times);
        println!(
            "{way:<20} {median:>7.3} µs of processor time a request ({least:.3} to {most:.3})"
        );
    }
    for (engine, [hand, tasks]) in [("io_uring", [0, 1]), ("epoll", [2, 3])] {
        let ratios: Vec<f64> = times[tasks]
            .iter()
            .zip(&times[hand])
            .map(|(t, h)| t / h)
            .collect();
        let (median, least, most) = middle(&ratios);
        let percent = |ratio: f64| (ratio - 1.0) * 100.0;
        println!(
            "{engine}: tasks cost {:+.1} % in the median of the rounds ({:+.1} to {:+.1})",
            percent(median),
            percent(least),
            percent(most)
        );
    }
}

/// Serves until it is killed.
fn serve_as(way: &str) {
    on_cpu(0);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.set_nonblocking(true).expect("O_NONBLOCK");
    println!("{}", listener.local_addr().expect("an address").port());
    let (_, serve) = WAYS
        .iter()
        .find(|(name, _)| *name == way)
        .expect("a known way");
    serve(listener, &answer());
}

/// Microseconds of processor time of a request served in this way.
fn measure(way: &str, requests: u64) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["serve", way]).stdout(Stdio::piped());
    let mut server = Server(command.spawn().expect("a process"));
    let mut line = String::new();
    let output = server.0.stdout.take().expect("a pipe");
    BufReader::new(output).read_line(&mut line).expect("a port");
    let port = line.trim().parse().expect("a port");
    let mut load = load::Load::connect(port, CONNECTIONS, answer().len());
    load.ask(requests / 10, REQUEST);
    let before = server.cpu_us();
    load.ask(requests, REQUEST);
    (server.cpu_us() - before) / requests as f64
}

/// A process that is ended with this.
struct Server(Child);

impl Server {
    /// Processor time so far, in µs.
    fn cpu_us(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.0.id());
        let text = std::fs::read_to_string(path).expect("the process lives");
        let behind_name = text.rsplit(')').next().unwrap_or_default();
        // utime and stime are the fields 14 and 15 (proc_pid_stat(5)); behind the name the third is first.
        let fields: Vec<u64> = behind_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|f| f.parse().ok())
            .collect();
        let ticks: u64 = fields.iter().sum();
        ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn on_cpu(id: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id });
}

/// Median, least and most.
fn middle(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    };
    (median, sorted[0], sorted[sorted.len() - 1])
}

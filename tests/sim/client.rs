//! Clients of the line protocol: what each plans to do, and whether what it saw is right.

use std::time::Duration;

use beltway::runtime::engine::sim::{
    Act, ClientId, End, Enough, Faults, ListenerId, Pace, Random, World,
};

use crate::server::{Cut, Server, body};

/// The files of the server: name and size.
pub(crate) const FILES: [(&str, usize); 4] =
    [("empty", 0), ("a", 100), ("dir/b", 5000), ("dir/c", 20_000)];

/// One request, with the answers that are right.
struct Request {
    id: u32,
    line: String,
    answers: Vec<Vec<u8>>,
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Ends its direction after the last request and reads to the end.
    Polite,
    /// Closes when it has all answers.
    Content,
    /// Reads slowly.
    Slow,
    /// Breaks the connection somewhere.
    Aborts,
    /// Closes its socket somewhere, with answers under way.
    Leaves,
    /// Sends half a request and no more.
    Idle,
    /// Doesn't read for a minute.
    Stuck,
}

/// A client with its plan.
pub(crate) struct Plan {
    pub(crate) id: ClientId,
    pub(crate) manner: Manner,
    requests: Vec<Request>,
}

fn request(random: &mut Random, id: u32, client: usize, faults: &Faults, most: usize) -> Request {
    let head = |rest: String| format!("{id} {rest}\n").into_bytes();
    let with_body = |body: &[u8]| {
        let mut answer = head(body.len().to_string());
        answer.extend_from_slice(body);
        answer
    };
    let mut answers = Vec::new();
    let line = match random.below(10) {
        0..4 => {
            let len = random.below(most as u64) as usize;
            answers.push(with_body(&body(id, len)));
            format!("echo {id} {len}\n")
        }
        4..7 => {
            let (name, size) = FILES[random.below(4) as usize];
            let (name, size) = if size > most { FILES[1] } else { (name, size) };
            answers.push(with_body(&body(size as u32, size)));
            if faults.no_descriptors > 0.0 {
                answers.push(head("failed".to_owned()));
            }
            format!("file {id} {name}\n")
        }
        7 => {
            let number = random.below(1000);
            answers.push(head((number * 2).to_string()));
            if faults.job_loss > 0.0 {
                answers.push(head("failed".to_owned()));
            }
            format!("job {id} {number}\n")
        }
        8 => {
            answers.push(head("waited".to_owned()));
            format!("wait {id} {}\n", random.below(300))
        }
        _ if random.below(4) == 0 => {
            answers.push(with_body(&body(7, 400)));
            if faults.no_descriptors > 0.0 {
                answers.push(head("failed".to_owned()));
            }
            format!("shrink {id} own{client}-{id}\n")
        }
        _ => {
            answers.push(with_body(&[]));
            format!("echo {id} 0\n")
        }
    };
    Request { id, line, answers }
}

pub(crate) fn pause(random: &mut Random) -> Duration {
    Duration::from_micros(match random.below(3) {
        0 => 0,
        1 => random.below(500),
        _ => random.below(50_000),
    })
}

impl Manner {
    /// One of them, the ordinary ones more often.
    pub(crate) fn pick(random: &mut Random) -> Self {
        match random.below(20) {
            0..7 => Self::Polite,
            7..10 => Self::Content,
            10..13 => Self::Slow,
            13..16 => Self::Aborts,
            16..18 => Self::Leaves,
            18 => Self::Idle,
            _ => Self::Stuck,
        }
    }
}

/// The script of a client that sends `all`: in parts, with pauses. `enough` tells one that is content
/// that it has all its answers; `partial` is what an idle one sends at last.
pub(crate) fn script(
    random: &mut Random,
    manner: Manner,
    all: &[u8],
    enough: Enough,
    partial: &[u8],
) -> Vec<(Duration, Act)> {
    let mut script = Vec::new();
    match manner {
        Manner::Slow => {
            let bytes = random.between(50, 2000) as usize;
            let every = Duration::from_micros(random.between(1, 5000));
            script.push((Duration::ZERO, Act::Read(Pace::Slow { bytes, every })));
        }
        Manner::Stuck => script.push((Duration::ZERO, Act::Read(Pace::Paused))),
        _ => {}
    }
    let mut rest = all;
    while !rest.is_empty() {
        let len = random.part(rest.len());
        script.push((pause(random), Act::Send(rest[..len].to_vec())));
        rest = &rest[len..];
    }
    match manner {
        Manner::Polite | Manner::Slow => script.push((pause(random), Act::HalfClose)),
        Manner::Stuck => {
            script.push((pause(random), Act::HalfClose));
            script.push((Duration::from_secs(60), Act::Read(Pace::Eager)));
        }
        Manner::Content => {
            script.push((Duration::ZERO, Act::Await(enough)));
            script.push((Duration::from_secs(5), Act::Close));
        }
        Manner::Aborts | Manner::Leaves => {
            let at = random.below(script.len() as u64 + 1) as usize;
            script.truncate(at);
            let act = if manner == Manner::Aborts {
                Act::Abort
            } else {
                Act::Close
            };
            script.push((pause(random), act));
        }
        Manner::Idle => script.push((pause(random), Act::Send(partial.to_vec()))),
    }
    script
}

impl Plan {
    /// Makes a client as the seed decides, and lets it connect.
    pub(crate) fn new(
        world: &World,
        listener: ListenerId,
        client: usize,
        faults: &Faults,
        most: usize,
    ) -> Self {
        let mut random = world.random(1 + client as u64);
        let manner = Manner::pick(&mut random);
        let many = random.between(1, 8) as u32;
        let requests: Vec<Request> = (0..many)
            .map(|id| request(&mut random, id, client, faults, most))
            .collect();
        for request in &requests {
            if let Some(name) = request.line.strip_prefix("shrink ") {
                let name = name.split_ascii_whitespace().nth(1).expect("a name");
                world.file(name, body(7, 400));
            }
        }
        let all: Vec<u8> = requests.iter().flat_map(|r| r.line.bytes()).collect();
        let last = format!("{} ", requests.last().expect("at least one").id);
        // It knows the last answer by its beginning; a body contains it by chance at worst.
        let shortest: usize = requests
            .iter()
            .map(|r| r.answers.iter().map(Vec::len).min().unwrap_or(0))
            .sum();
        let enough = move |received: &[u8]| {
            let mut windows = received.windows(last.len());
            windows.any(|window| window == last.as_bytes()) && received.len() >= shortest
        };
        let script = script(&mut random, manner, &all, Box::new(enough), b"echo 99");
        let begin = pause(&mut random);
        let id = world.connect(listener, begin, script);
        if random.below(2) == 0 {
            world.set_window(id, random.between(1, 4096) as usize + most / 16);
        }
        Self {
            id,
            manner,
            requests,
        }
    }

    /// Checks that every request ended once: answered whole, or with a cause for its absence. Gives
    /// the number of whole answers.
    pub(crate) fn check(&self, server: &Server, index: usize) -> usize {
        let seen = server.world.seen(self.id);
        let ended = server.ended.borrow().get(&index).copied();
        let fail = |why: String| -> ! {
            server.world.fail(format_args!(
                "client {index}, {:?}: {why}; end {:?}, aborted {}, broken {}, server {ended:?}",
                self.manner, seen.end, seen.aborted, seen.broken
            ))
        };
        let left = matches!(self.manner, Manner::Aborts | Manner::Leaves);
        let cut = match ended {
            Some(Err(Cut::Dropped | Cut::Shrunk | Cut::Unreadable)) => true,
            Some(Err(Cut::Stuck)) => self.manner == Manner::Stuck,
            _ => false,
        };
        let excused = left || seen.broken || cut;
        let mut rest = &seen.received[..];
        let mut answered = 0;
        for request in &self.requests {
            let begun = server.begun.borrow().get(&(index, request.id)).copied();
            let whole = request.answers.iter().find(|a| rest.starts_with(a));
            if let Some(answer) = whole {
                rest = &rest[answer.len()..];
                answered += 1;
                if begun != Some(1) {
                    fail(format!("request {} was begun {begun:?} times", request.id));
                }
                continue;
            }
            if begun.is_some_and(|times| times > 1) {
                fail(format!("request {} was begun {begun:?} times", request.id));
            }
            if !request.answers.iter().any(|a| a.starts_with(rest)) {
                fail(format!("a wrong answer to {:?}: {rest:?}", request.line));
            }
            if !excused {
                fail(format!("{:?} has no whole answer", request.line));
            }
            if seen.end == Some(End::Fin) && !rest.is_empty() && ended != Some(Err(Cut::Dropped)) {
                fail(format!(
                    "half an answer to {:?} ends like a whole one",
                    request.line
                ));
            }
            return answered;
        }
        let told = self.manner == Manner::Idle && b"timeout\n".starts_with(rest);
        if !(rest.is_empty() || told) {
            fail(format!("bytes after the last answer: {rest:?}"));
        }
        let fin = matches!(self.manner, Manner::Polite | Manner::Slow | Manner::Idle);
        if fin && !excused && seen.end != Some(End::Fin) {
            fail("the connection did not end well".to_owned());
        }
        answered
    }
}

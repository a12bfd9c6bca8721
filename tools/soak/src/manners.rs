//! What clients do, one round at a time. Each checks every answer it waits for; those that leave on purpose
//! check nothing after that.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::files::{self, FILES, File};
use crate::http::{Connection, Trouble, wrong};
use crate::random::{Random, Sum, content};

/// A client with what it keeps between rounds.
pub(crate) struct Client {
    /// The server.
    pub(crate) address: SocketAddr,
    /// Its decisions.
    pub(crate) random: Random,
    /// A connection that may be used again.
    pub(crate) kept: Option<Connection>,
}

/// A round of a client.
pub(crate) type Round = fn(&mut Client) -> Result<(), Trouble>;

/// All manners by name, each with how often it is taken.
pub(crate) const MANNERS: [(&str, u64, Round); 15] = [
    ("keep-alive", 6, keep_alive),
    ("one request", 3, one_request),
    ("pipelined", 4, pipelined),
    ("ranges", 4, ranges),
    ("download", 1, download),
    ("slow reader", 1, slow_reader),
    ("slow writer", 1, slow_writer),
    ("half close", 2, half_close),
    ("revalidation", 2, revalidation),
    ("replaced file", 2, replaced_file),
    ("abort", 6, abort),
    ("proxied", 6, proxied),
    ("upload", 3, upload),
    ("unruly backend", 3, unruly_backend),
    ("tunnel", 3, tunnel),
];

impl Client {
    /// The kept connection, or a new one.
    fn connection(&mut self) -> Result<Connection, Trouble> {
        match self.kept.take() {
            Some(kept) => Ok(kept),
            None => self.fresh(),
        }
    }

    fn fresh(&self) -> Result<Connection, Trouble> {
        Connection::open(self.address)
    }

    fn pause(&mut self, most_ms: u64) {
        thread::sleep(Duration::from_millis(self.random.below(most_ms)));
    }

    fn small(&mut self) -> &'static File {
        self.random.one_of(&[&FILES[0], &FILES[1], &FILES[2]])
    }
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: soak\r\n{fields}\r\n")
}

/// Reads an answer of 200 or 206 and compares it with the content of this number.
fn check(
    connection: &mut Connection,
    status: u16,
    number: u64,
    from: u64,
    len: u64,
    mut seen: impl FnMut(u64),
) -> Result<bool, Trouble> {
    let head = connection.head(false)?;
    if head.status != status {
        return Err(wrong(format!("status {} instead of {status}", head.status)));
    }
    let mut at = from;
    connection.body(&head, |bytes| {
        if bytes != content(number, at, bytes.len()) {
            return Err(wrong(format!("other bytes than were asked for, near {at}")));
        }
        at += bytes.len() as u64;
        seen(at - from);
        Ok(())
    })?;
    match at - from == len {
        true => Ok(head.closes()),
        false => Err(wrong(format!("{} bytes instead of {len}", at - from))),
    }
}

fn keep_alive(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.connection()?;
    for _ in 0..=client.random.below(20) {
        let File { name, number, len } = client.small();
        connection.send(get(&format!("/{name}"), ""))?;
        if check(&mut connection, 200, *number, 0, *len, |_| ())? {
            return Ok(());
        }
    }
    client.kept = Some(connection);
    Ok(())
}

fn one_request(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.fresh()?;
    connection.send(get("/ok", "Connection: close\r\n"))?;
    let (head, body) = connection.answer()?;
    if (head.status, &body[..]) != (200, b"ok") {
        return Err(wrong(format!("{head:?} {body:?}")));
    }
    connection.end()
}

fn pipelined(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.connection()?;
    let files: Vec<&File> = (0..2 + client.random.below(14))
        .map(|_| client.small())
        .collect();
    let all: String = files
        .iter()
        .map(|file| get(&format!("/{}", file.name), ""))
        .collect();
    let at = client.random.below(all.len() as u64) as usize;
    connection.send(&all[..at])?;
    connection.send(&all[at..])?;
    for file in files {
        // What stands behind an answer that closes was never taken.
        if check(&mut connection, 200, file.number, 0, file.len, |_| ())? {
            return Ok(());
        }
    }
    client.kept = Some(connection);
    Ok(())
}

fn ranges(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.connection()?;
    let File { name, number, len } = client.random.one_of(&[&FILES[2], &FILES[3]]);
    for _ in 0..1 + client.random.below(4) {
        let from = client.random.below(*len);
        let last = (from + client.random.below(400_000)).min(len - 1);
        connection.send(get(
            &format!("/{name}"),
            &format!("Range: bytes={from}-{last}\r\n"),
        ))?;
        if check(&mut connection, 206, *number, from, last + 1 - from, |_| ())? {
            return Ok(());
        }
    }
    client.kept = Some(connection);
    Ok(())
}

fn download(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.fresh()?;
    let File { name, number, len } = &FILES[3];
    connection.send(get(&format!("/{name}"), ""))?;
    check(&mut connection, 200, *number, 0, *len, |_| ()).map(drop)
}

/// Takes 64 KiB a little at a time, so that the server waits for it in between.
fn slow_reader(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.fresh()?;
    let File { name, number, len } = &FILES[3];
    let target = match client.random.once_in(2) {
        true => format!("/{name}"),
        false => format!("/app/bytes/{number}/{len}"),
    };
    connection.send(get(&target, ""))?;
    check(&mut connection, 200, *number, 0, *len, |seen| {
        if seen % (64 << 10) < 16 << 10 {
            thread::sleep(Duration::from_millis(5));
        }
    })
    .map(drop)
}

fn slow_writer(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.fresh()?;
    let request = get("/ok", "X-Padding: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n");
    for piece in request.as_bytes().chunks(16) {
        connection.send(piece)?;
        client.pause(40);
    }
    let (head, body) = connection.answer()?;
    match (head.status, &body[..]) {
        (200, b"ok") => Ok(()),
        _ => Err(wrong(format!("{head:?} {body:?}"))),
    }
}

fn half_close(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.fresh()?;
    let File { name, number, len } = client.random.one_of(&[&FILES[0], &FILES[2], &FILES[3]]);
    let target = match client.random.once_in(2) {
        true => format!("/{name}"),
        false => format!("/app/bytes/{number}/{len}"),
    };
    connection.send(get(&target, ""))?;
    connection.half_close()?;
    check(&mut connection, 200, *number, 0, *len, |_| ())?;
    connection.end()
}

fn revalidation(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.connection()?;
    let name = client.small().name;
    connection.send(format!("HEAD /{name} HTTP/1.1\r\nHost: soak\r\n\r\n"))?;
    let head = connection.head(true)?;
    let tag = head
        .field("etag")
        .ok_or_else(|| wrong("no ETag"))?
        .to_owned();
    if head.closes() {
        return Ok(());
    }
    connection.send(get(
        &format!("/{name}"),
        &format!("If-None-Match: {tag}\r\n"),
    ))?;
    let (head, _) = connection.answer()?;
    if head.status != 304 {
        return Err(wrong(format!("status {} for a known ETag", head.status)));
    }
    if !head.closes() {
        client.kept = Some(connection);
    }
    Ok(())
}

/// The old content or the new one, never a mixture.
fn replaced_file(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.connection()?;
    connection.send(get(&format!("/{}", files::REPLACED), ""))?;
    let (head, body) = connection.answer()?;
    if head.status != 200 || !files::is_whole_replaced(&body) {
        return Err(wrong(format!(
            "status {} and a file that never was",
            head.status
        )));
    }
    if !head.closes() {
        client.kept = Some(connection);
    }
    Ok(())
}

/// Leaves at one of many moments, by a reset or a close.
fn abort(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.fresh()?;
    let big = FILES[3].name;
    let number = client.random.below(1000);
    match client.random.below(9) {
        0 => {}
        1 => connection.send("GET /pa")?,
        2 => connection.send(get(&format!("/{big}"), ""))?,
        3 => {
            connection.send(get(&format!("/{big}"), ""))?;
            connection.exactly(1 + client.random.below(500_000) as usize)?;
        }
        4 => connection.send(get(&format!("/app/bytes/{number}/3000000"), ""))?,
        5 => {
            connection.send(get(&format!("/app/chunks/{number}/3000000"), ""))?;
            connection.exactly(1 + client.random.below(500_000) as usize)?;
        }
        6 => {
            let length = "Content-Length: 1000000\r\n";
            connection.send(format!(
                "POST /app/sum HTTP/1.1\r\nHost: soak\r\n{length}\r\n"
            ))?;
            connection.send(vec![b'x'; client.random.below(500_000) as usize])?;
        }
        7 => connection.send(get("/unruly/late", ""))?,
        _ => {
            connection.send(get("/app/tunnel", UPGRADE))?;
            connection.send("first words")?;
        }
    }
    client.pause(10);
    match client.random.once_in(2) {
        true => connection.reset(),
        false => drop(connection),
    }
    Ok(())
}

fn proxied(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.connection()?;
    for _ in 0..1 + client.random.below(10) {
        let number = client.random.below(1000);
        let most = client.random.one_of(&[100, 10_000, 1_000_000]);
        let len = client.random.below(most);
        let how = client.random.one_of(&["bytes", "chunks"]);
        connection.send(get(&format!("/app/{how}/{number}/{len}"), ""))?;
        if check(&mut connection, 200, number, 0, len, |_| ())? {
            return Ok(());
        }
    }
    client.kept = Some(connection);
    Ok(())
}

/// The backend answers with the sum of what it got.
fn upload(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.connection()?;
    let most = client.random.one_of(&[100, 100_000, 2_000_000]);
    let body = content(client.random.bits(), 0, client.random.below(most) as usize);
    let mut sum = Sum::new();
    sum.add(&body);
    let chunked = client.random.once_in(2);
    let framing = match chunked {
        true => "Transfer-Encoding: chunked\r\n".to_owned(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    let expect = match client.random.once_in(3) {
        true => "Expect: 100-continue\r\n",
        false => "",
    };
    connection.send(format!(
        "POST /app/sum HTTP/1.1\r\nHost: soak\r\n{framing}{expect}\r\n"
    ))?;
    for piece in body.chunks(1 + client.random.below(200_000) as usize) {
        if chunked {
            connection.send(format!("{:x}\r\n", piece.len()))?;
        }
        connection.send(piece)?;
        if chunked {
            connection.send("\r\n")?;
        }
    }
    if chunked {
        connection.send("0\r\n\r\n")?;
    }
    let (head, answer) = connection.answer()?;
    let expected = format!("{} {:x}", body.len(), sum.0);
    if head.status != 200 || answer != expected.as_bytes() {
        let answer = String::from_utf8_lossy(&answer);
        return Err(wrong(format!(
            "status {}: {answer} instead of {expected}",
            head.status
        )));
    }
    if !head.closes() {
        client.kept = Some(connection);
    }
    Ok(())
}

/// What a backend does badly must not look well.
fn unruly_backend(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.connection()?;
    let how = client.random.one_of(&[
        "cut",
        "unfinished",
        "nothing",
        "nonsense",
        "late",
        "slow",
        "interim",
        "leaves",
    ]);
    connection.send(get(&format!("/unruly/{how}"), ""))?;
    let head = connection.head(false)?;
    let mut got = Vec::new();
    let body = connection.body(&head, |bytes| {
        got.extend_from_slice(bytes);
        Ok(())
    });
    let as_expected = match (how, head.status, &body) {
        // A cut that was seen before anything was passed on may be told in words.
        ("cut" | "unfinished", 200, Err(Trouble::Cut(_))) => return Ok(()),
        ("cut" | "unfinished" | "nothing" | "nonsense", 502, Ok(())) => true,
        ("late", 504, Ok(())) => true,
        ("slow", 200, Ok(())) => got == content(9, 0, 40),
        ("interim" | "leaves", 200, Ok(())) => got == how.as_bytes(),
        _ => false,
    };
    if !as_expected {
        body?;
        return Err(wrong(format!(
            "{how}: status {}, {} bytes",
            head.status,
            got.len()
        )));
    }
    if !head.closes() {
        client.kept = Some(connection);
    }
    Ok(())
}

const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\n";

fn tunnel(client: &mut Client) -> Result<(), Trouble> {
    let mut connection = client.fresh()?;
    connection.send(get("/app/tunnel", UPGRADE))?;
    let head = connection.head(false)?;
    if head.status != 101 {
        return Err(wrong(format!("status {} instead of a tunnel", head.status)));
    }
    for _ in 0..client.random.below(20) {
        let most = client.random.one_of(&[100, 60_000]);
        let len = client.random.below(most) as usize;
        let message = content(client.random.bits(), 0, len);
        connection.send(&message)?;
        if connection.exactly(len)? != message {
            return Err(wrong("another message than was sent"));
        }
        client.pause(20);
    }
    match client.random.below(3) {
        0 => connection.reset(),
        1 => drop(connection),
        _ => {
            connection.half_close()?;
            connection.end()?;
        }
    }
    Ok(())
}

//! The command line's half of the control socket: one request, one reply. It waits, and how long is
//! bounded by what was asked for.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::{Command, REPLY_BYTES_MAX, Reply, Request};

/// How long it may take to be let in and to give the request.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Why there is no reply.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens at any of these paths.
    NothingRuns(Vec<PathBuf>),
    /// The socket is there and can't be used.
    Unreachable(PathBuf, io::Error),
    /// The server took the request and no answer came, or none that can be read.
    NoAnswer(PathBuf, String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingRuns(paths) => {
                let shown: Vec<_> = paths
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                write!(f, "no control socket at {}", shown.join(" or "))
            }
            Self::Unreachable(path, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "this user may not use the control socket {}; run the command as the user that \
                     runs the server, or with sudo",
                    path.display()
                )
            }
            Self::Unreachable(path, error) if error.kind() == io::ErrorKind::WouldBlock => write!(
                f,
                "the server behind the control socket {} doesn't take the request within {} s; see \
                 what it does with `ss -xlp` and `ps`",
                path.display(),
                CONNECT_TIME.as_secs()
            ),
            Self::Unreachable(path, error) => {
                write!(
                    f,
                    "the control socket {} can't be used: {error}",
                    path.display()
                )
            }
            Self::NoAnswer(path, why) => {
                write!(
                    f,
                    "the server behind the control socket {}: {why}",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for ClientError {}

/// Asks the first server that listens at one of `paths`.
///
/// # Errors
/// When there is none, when it can't be used, or when it gives no answer in time.
pub fn ask(paths: &[PathBuf], request: &Request) -> Result<Reply, ClientError> {
    ask_within(paths, request, patience(request.command))
}

/// How long the answer may take. A change may take `start_timeout` for each worker that must come up,
/// and a graceful end all of `drain_timeout`; Ctrl-C ends the wait, not what was asked for.
fn patience(command: Command) -> Duration {
    Duration::from_secs(match command {
        Command::Status | Command::Plan | Command::Reopen | Command::Probe | Command::Server => 60,
        Command::Reload | Command::Upgrade | Command::Stop => 30 * 60,
        Command::Quit => 24 * 60 * 60,
    })
}

fn ask_within(
    paths: &[PathBuf],
    request: &Request,
    patience: Duration,
) -> Result<Reply, ClientError> {
    for path in paths {
        match connect(path) {
            Ok(stream) => return exchange(stream, path, request, patience),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {}
                _ => return Err(ClientError::Unreachable(path.clone(), error)),
            },
        }
    }
    Err(ClientError::NothingRuns(paths.to_vec()))
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // It bounds the wait in connect(2) too, while the server's queue is full.
    socket.set_write_timeout(Some(CONNECT_TIME))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

fn exchange(
    mut stream: UnixStream,
    path: &Path,
    request: &Request,
    patience: Duration,
) -> Result<Reply, ClientError> {
    let unreachable = |error| ClientError::Unreachable(path.to_owned(), error);
    let no_answer = |why: String| ClientError::NoAnswer(path.to_owned(), why);
    stream
        .set_read_timeout(Some(patience))
        .map_err(unreachable)?;
    let sent = match stream.write_all(&request.to_line()) {
        Ok(()) => true,
        // It said no and closed before it read: the reason is there to be read.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => false,
        Err(error) => return Err(unreachable(error)),
    };
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream).take(REPLY_BYTES_MAX as u64 + 1);
    let read = reader.read_until(b'\n', &mut line);
    if line.last() == Some(&b'\n') {
        return Reply::parse(&line).map_err(no_answer);
    }
    let ended = match read {
        Ok(_) => line.len() <= REPLY_BYTES_MAX,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(no_answer(format!(
                "no answer within {} s; what was asked for may still happen, `beltway status` tells",
                patience.as_secs()
            )));
        }
        Err(error) => return Err(no_answer(error.to_string())),
    };
    match (
        ended,
        sent && line.is_empty() && request.command.ends_the_server(),
    ) {
        (true, true) => Ok(Reply::done("stopped\n")),
        (true, false) => Err(no_answer(
            "it closed the connection without an answer; its log says more".to_owned(),
        )),
        (false, _) => Err(no_answer(format!(
            "the answer is longer than {} MiB",
            REPLY_BYTES_MAX >> 20
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// What the caller gets from a server that reads a line, writes `bytes` and closes.
    fn asked(command: Command, bytes: &'static [u8]) -> Result<Reply, ClientError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(bytes).unwrap();
            line
        });
        let absent = directory.path().join("absent.sock");
        let result = ask(&[absent, path], &Request::new(command));
        let line = server.join().unwrap();
        assert_eq!(Request::parse(line.as_bytes()), Ok(Request::new(command)));
        result
    }

    #[test]
    fn a_reply_is_given_on() {
        let reply = asked(
            Command::Reload,
            b"{\"version\":1,\"exit\":78,\"text\":\"no\\n\"}\n",
        );
        assert_eq!(reply.unwrap(), Reply::failed(78, "no\n"));
    }

    #[test]
    fn an_end_without_a_reply_is_success_only_for_those_who_asked_for_the_end() {
        assert_eq!(asked(Command::Stop, b"").unwrap().exit, 0);
        assert_eq!(asked(Command::Quit, b"").unwrap().exit, 0);
        for (command, bytes) in [
            (Command::Reload, &b""[..]),
            (Command::Quit, b"{\"version\":1"),
            (Command::Status, b"{}\n"),
            (Command::Status, b"{\"version\":2,\"exit\":0}\n"),
        ] {
            let error = asked(command, bytes).unwrap_err();
            assert!(matches!(error, ClientError::NoAnswer(..)), "{error}");
        }
    }

    #[test]
    fn nothing_that_listens_is_told_with_all_paths() {
        let directory = tempfile::tempdir().unwrap();
        let dead = directory.path().join("dead.sock");
        drop(UnixListener::bind(&dead).unwrap());
        let absent = directory.path().join("absent.sock");
        let error = ask(&[dead, absent], &Request::new(Command::Status)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("dead.sock or /"), "{text}");
        assert!(text.contains("absent.sock"), "{text}");
    }

    #[test]
    fn a_silent_server_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let patience = Duration::from_millis(20);
        let error = ask_within(&[path], &Request::new(Command::Status), patience).unwrap_err();
        assert!(error.to_string().contains("no answer within"), "{error}");
    }

    #[test]
    fn who_may_not_is_told_what_to_do() {
        let denied = io::ErrorKind::PermissionDenied.into();
        let text = ClientError::Unreachable("/run/a.sock".into(), denied).to_string();
        assert!(text.contains("sudo"), "{text}");
    }
}

//! The lines of the control protocol: requests, replies, and what is refused before anybody acts on
//! it. No socket and no clock.
//!
//! ```text
//! {"version":1,"command":"reload"}
//! {"version":1,"command":"server","server":{"set":{"upstream":"app","server":"10.0.0.1:80","state":"drain"}}}
//! {"version":1,"exit":0,"text":"epoch 3 serves since now\n","data":null}
//! ```
//!
//! Unknown fields are ignored, so that a newer program can speak to an older server; what changes the
//! meaning of a line changes its version.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::model::ServerState;

/// The version of the protocol that this program speaks.
pub const VERSION: u64 = 1;

/// Longest request with its end of line, in bytes: 64 KiB.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Longest reply with its end of line, in bytes: 16 MiB.
pub const REPLY_BYTES_MAX: usize = 16 << 20;

/// Names a request until it is answered, across an upgrade too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// What is asked of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Read the configuration again and serve it.
    Reload,
    /// Replace the running program by what stands at its path now.
    Upgrade,
    /// End at once.
    Stop,
    /// Let requests end, then end.
    Quit,
    /// Open the log files again, as after a rotation.
    Reopen,
    /// Tell how it is.
    Status,
    /// Tell what a reload would change.
    Plan,
    /// Let a worker try what its sandbox forbids.
    Probe,
    /// Tell how the servers of upstreams are, or set the state of one: see [`ServerAsk`].
    Server,
}

impl Command {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Reload,
        Self::Upgrade,
        Self::Stop,
        Self::Quit,
        Self::Reopen,
        Self::Status,
        Self::Plan,
        Self::Probe,
        Self::Server,
    ];

    /// Its name in a request.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
            Self::Stop => "stop",
            Self::Quit => "quit",
            Self::Reopen => "reopen",
            Self::Status => "status",
            Self::Plan => "plan",
            Self::Probe => "probe",
            Self::Server => "server",
        }
    }

    /// The command of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.name() == name)
    }

    /// Whether the server is gone when it has done this, so that a connection which ends without a
    /// reply means: done.
    pub fn ends_the_server(self) -> bool {
        matches!(self, Self::Stop | Self::Quit)
    }
}

/// What is asked of the servers of upstreams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerAsk {
    /// How they are.
    List {
        /// Of this upstream alone.
        #[serde(default)]
        upstream: Option<String>,
    },
    /// One of them has this state from now on.
    Set {
        /// Its upstream.
        upstream: String,
        /// Its name in the configuration; or the host in it, or `:PORT`, where no other server has that.
        server: String,
        /// The state.
        state: ServerState,
    },
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u64,
    /// What is asked.
    pub command: Command,
    /// For [`Command::Server`], and for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerAsk>,
}

impl Request {
    /// A request of this version.
    pub fn new(command: Command) -> Self {
        Self {
            version: VERSION,
            command,
            server: None,
        }
    }

    /// A request about servers.
    pub fn server(ask: ServerAsk) -> Self {
        Self {
            server: Some(ask),
            ..Self::new(Command::Server)
        }
    }

    /// The line, with its end.
    pub fn to_line(&self) -> Vec<u8> {
        // Numbers, names and texts can always be JSON.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads a line, its end taken off or not.
    ///
    /// # Errors
    /// The reply that tells the caller what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, Reply> {
        let refused = |text: &str| Reply::failed(REFUSED, format!("error: {text}\n"));
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| refused(&format!("the request is no line of JSON: {error}")))?;
        match value.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(refused(&format!(
                    "this server (beltway {}) speaks version {VERSION} of the control protocol, \
                     the request is of version {other}; use the program that runs it",
                    env!("CARGO_PKG_VERSION"),
                )));
            }
            None => return Err(refused("the request has no version; add \"version\":1")),
        }
        let name = value.get("command").and_then(Value::as_str);
        let name = name.ok_or_else(|| refused("the request has no command"))?;
        let command = Command::named(name).ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            let known = Command::ALL.map(Command::name).join(", ");
            refused(&format!(
                "this server (beltway {}) knows no command {shown:?}; it knows {known}",
                env!("CARGO_PKG_VERSION"),
            ))
        })?;
        if command != Command::Server {
            return Ok(Self::new(command));
        }
        let ask = value.get("server").cloned().unwrap_or_default();
        let ask = ServerAsk::deserialize(ask).map_err(|error| {
            refused(&format!(
                "the command \"server\" needs \"server\":{{\"list\":{{\"upstream\":…}}}} or \
                 {{\"set\":{{\"upstream\":…,\"server\":…,\"state\":\"up|drain|down\"}}}}: {error}"
            ))
        })?;
        Ok(Self::server(ask))
    }
}

/// The exit code of a request that the server would not take.
const REFUSED: u8 = 1;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u64,
    /// The exit code that the caller ends with: 0 done, 1 failed, 78 bad configuration.
    pub exit: u8,
    /// For people, each line ended; may be empty.
    #[serde(default)]
    pub text: String,
    /// For programs; null where there is nothing to tell.
    #[serde(default)]
    pub data: Value,
}

impl Reply {
    /// It is done.
    pub fn done(text: impl Into<String>) -> Self {
        Self::failed(0, text)
    }

    /// It is not done, for this reason.
    pub fn failed(exit: u8, text: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            exit,
            text: text.into(),
            data: Value::Null,
        }
    }

    /// The same with data for programs.
    #[must_use]
    pub fn with_data(mut self, data: Value) -> Self {
        self.data = data;
        self
    }

    /// The line, with its end. A reply that is longer than [`REPLY_BYTES_MAX`] becomes a failure that
    /// says so.
    pub fn to_line(&self) -> Vec<u8> {
        let line = serde_json::to_vec(self).unwrap_or_default();
        if line.is_empty() || line.len() >= REPLY_BYTES_MAX {
            let text = format!(
                "error: the answer is longer than {} MiB and can't be sent\n",
                REPLY_BYTES_MAX >> 20
            );
            return Self::failed(REFUSED, text).to_line();
        }
        let mut line = line;
        line.push(b'\n');
        line
    }

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let reply: Self = serde_json::from_slice(line)
            .map_err(|error| format!("the server's answer can't be read: {error}"))?;
        if reply.version == VERSION {
            return Ok(reply);
        }
        Err(format!(
            "the server answers in version {} of the control protocol, this program (beltway {}) \
             speaks version {VERSION}; use the program that runs the server",
            reply.version,
            env!("CARGO_PKG_VERSION"),
        ))
    }
}

/// Whether a process of user `peer` may command a master that runs as `own`: root and the master's own
/// user may. The file's mode says the same; this holds also where the file was made wider or the
/// descriptor was handed on.
pub fn may_command(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let set = ServerAsk::Set {
            upstream: "app \"1\"".to_owned(),
            server: "unix:/a\nb".to_owned(),
            state: ServerState::Drain,
        };
        let list = ServerAsk::List { upstream: None };
        let plain = Command::ALL.into_iter().filter(|it| *it != Command::Server);
        let requests = plain.map(Request::new);
        for request in requests.chain([set, list].map(Request::server)) {
            let command = request.command;
            let line = request.to_line();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(line.last(), Some(&b'\n'));
            assert_eq!(Request::parse(&line), Ok(request.clone()));
            assert_eq!(
                serde_json::to_value(&request).unwrap()["command"],
                command.name()
            );
        }
        let reply = Reply::failed(78, "a\nb\n").with_data(serde_json::json!({"a": [1]}));
        let line = reply.to_line();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Reply::parse(&line), Ok(reply));
    }

    #[test]
    fn what_is_not_understood_is_told_so() {
        for (line, part) in [
            (&b"GET / HTTP/1.1\r\n"[..], "no line of JSON"),
            (b"", "no line of JSON"),
            (br#"{"command":"reload"}"#, "no version"),
            (br#"{"version":2,"command":"reload"}"#, "version 2"),
            (br#"{"version":1}"#, "no command"),
            (
                br#"{"version":1,"command":"dance"}"#,
                "\"dance\"; it knows reload, upgrade",
            ),
            (br#"[1]"#, "no version"),
            (br#"{"version":1,"command":"server"}"#, "needs"),
            (
                br#"{"version":1,"command":"server","server":{"set":{"upstream":"a","server":"b","state":"off"}}}"#,
                "unknown variant `off`",
            ),
        ] {
            let reply = Request::parse(line).unwrap_err();
            assert_eq!(reply.exit, 1);
            assert!(reply.text.contains(part), "{}", reply.text);
        }
        let newer = br#"{"version":1,"command":"status","colour":"blue"}"#;
        assert_eq!(Request::parse(newer), Ok(Request::new(Command::Status)));
        assert!(
            Reply::parse(br#"{"version":9,"exit":0}"#)
                .unwrap_err()
                .contains("version 9")
        );
        assert!(Reply::parse(b"{").is_err());
    }

    #[test]
    fn a_reply_that_is_too_long_says_so() {
        let line = Reply::done("x".repeat(REPLY_BYTES_MAX)).to_line();
        let reply = Reply::parse(&line).unwrap();
        assert_eq!(reply.exit, 1);
        assert!(reply.text.contains("16 MiB"), "{}", reply.text);
    }

    #[test]
    fn root_and_the_masters_own_user_may_command() {
        assert!(may_command(0, 0) && may_command(0, 33) && may_command(33, 33));
        assert!(!may_command(33, 0) && !may_command(1000, 33));
    }
}

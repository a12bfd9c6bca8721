//! What the administrator says of servers over the control socket, and for how long it stands.
//!
//! The master remembers it and the workers do it, so that a worker that is started later, for whatever
//! reason, goes by it too. A word is for a server as the configuration names it, with all the addresses
//! that a name has, because these come and go. It stands until another word, and until a
//! configuration comes into force that says of the server another thing than when the word was given:
//! then that is the newer word. One that says the same as the configuration is none.
//!
//! Bound: one word for each server of the configuration in force.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Master;
use super::configuration::UpstreamFacts;
use super::machine::WorkerId;
use super::requests::Kind;
use crate::config::model::ServerState;
use crate::supervisor::control::protocol::{Reply, RequestId as CallerId, ServerAsk};
use crate::supervisor::messages::Word;
use crate::supervisor::refusal;

/// Most names that an error lists.
const NAMES_MAX: usize = 20;

/// The words that stand.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Words(Vec<Said>);

/// A word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    /// The server's upstream.
    upstream: String,
    /// What the configuration calls the server.
    server: String,
    /// What is to be done with it.
    state: ServerState,
    /// What the configuration said of it then.
    configured: ServerState,
}

impl Words {
    /// Remembers a word, and forgets the one before.
    fn say(&mut self, said: &Said) {
        self.0.retain(|known| !known.is_about(said));
        if said.state != said.configured {
            self.0.push(said.clone());
        }
    }

    /// Those that stand with a configuration of these upstreams.
    pub(super) fn of(&self, upstreams: &[UpstreamFacts]) -> Vec<Word> {
        let standing = self.0.iter().filter(|said| said.stands_with(upstreams));
        standing.map(Said::word).collect()
    }

    /// A configuration of these upstreams is in force: words that it has taken back are forgotten.
    pub(super) fn keep_to(&mut self, upstreams: &[UpstreamFacts]) {
        for gone in self.0.extract_if(.., |said| !said.stands_with(upstreams)) {
            let Said {
                upstream,
                server,
                state,
                ..
            } = gone;
            let state = state.name();
            tracing::info!(
                upstream,
                server,
                state,
                "the configuration takes back what `beltway server` has set"
            );
        }
    }

    /// What holds of a server.
    fn state(&self, upstream: &str, (server, configured): &(String, ServerState)) -> ServerState {
        let mut words = self.0.iter();
        let word = words.find(|said| said.upstream == upstream && said.server == *server);
        word.map_or(*configured, |said| said.state)
    }
}

impl Said {
    /// For the workers.
    pub(super) fn word(&self) -> Word {
        Word {
            upstream: self.upstream.clone(),
            server: self.server.clone(),
            state: self.state,
        }
    }

    /// What was asked, to ask it again.
    pub(super) fn ask(&self) -> ServerAsk {
        ServerAsk::Set {
            upstream: self.upstream.clone(),
            server: self.server.clone(),
            state: self.state,
        }
    }

    fn is_about(&self, other: &Self) -> bool {
        self.upstream == other.upstream && self.server == other.server
    }

    fn stands_with(&self, upstreams: &[UpstreamFacts]) -> bool {
        let upstream = upstreams.iter().find(|it| it.name == self.upstream);
        let servers = upstream.map_or(&[][..], |upstream| &upstream.servers);
        let is_it = |(name, configured): &(String, ServerState)| {
            *name == self.server && *configured == self.configured
        };
        servers.iter().any(is_it)
    }
}

impl Master {
    /// Takes what is asked of servers.
    pub(super) fn servers(&mut self, caller: CallerId, ask: Option<ServerAsk>, now: Instant) {
        match self.resolve(ask) {
            Ok(kind) => self.gather(caller, kind, now),
            Err(what) => self.reply(caller, &Reply::failed(1, what)),
        }
    }

    /// A word stands from now on.
    pub(super) fn remember(&mut self, said: &Said) {
        let Said {
            upstream,
            server,
            state,
            ..
        } = said;
        let state = state.name();
        tracing::info!(upstream, server, state, "set by `beltway server`");
        self.words.say(said);
    }

    /// # Errors
    /// What is wrong with it, in whole lines.
    fn resolve(&self, ask: Option<ServerAsk>) -> Result<Kind, String> {
        let in_force = self.in_force.and_then(|id| self.configurations.get(&id));
        let Some(configuration) = in_force else {
            let what = "no configuration is in force yet";
            let help = "ask again when the server has started; `beltway status` tells";
            return Err(refusal::message(what, None, &[help.to_owned()]));
        };
        let upstreams = &configuration.facts.upstreams;
        match ask {
            Some(ServerAsk::Set {
                upstream,
                server,
                state,
            }) => {
                let upstream = find_upstream(upstreams, &upstream)?;
                let (server, configured) = find_server(upstream, &server)?.clone();
                Ok(Kind::Set(Said {
                    upstream: upstream.name.clone(),
                    server,
                    state,
                    configured,
                }))
            }
            Some(ServerAsk::List { upstream }) => {
                if let Some(name) = &upstream {
                    find_upstream(upstreams, name)?;
                }
                Ok(Kind::Servers(upstream))
            }
            None => Err("error: the request has no \"server\"\n".to_owned()),
        }
    }

    /// The workers that a word is for: not those that get another configuration just now, which says
    /// another thing of the server.
    pub(super) fn concerned(&self, said: &Said) -> Vec<WorkerId> {
        let children = self.children.iter().filter(|child| {
            let configuration = self.configurations.get(&child.config);
            let next = configuration.filter(|_| Some(child.config) != self.in_force);
            next.is_none_or(|next| said.stands_with(&next.facts.upstreams))
        });
        children.map(|child| child.worker).collect()
    }

    /// A word was given. `set`: workers that go by it; `out`: why health keeps the server out all the
    /// same, empty where it doesn't; `silent`: workers that have not answered in time.
    pub(super) fn set_reply(&self, said: &Said, (set, out): (usize, &str), silent: usize) -> Reply {
        let Said {
            upstream,
            server,
            state,
            configured,
        } = said;
        let data = serde_json::json!({
            "ok": silent == 0 && set > 0,
            "upstream": upstream,
            "server": server,
            "state": state,
            "configured": configured,
            "workers": set,
            "reason": out,
        });
        if silent > 0 {
            let what = format!(
                "{upstream}: {server}: {silent} of {} workers have not answered yet",
                set + silent
            );
            let help = "it is remembered, and theirs when they answer; `beltway status` tells";
            let text = refusal::message(&what, None, &[help.to_owned()]);
            return Reply::failed(1, text).with_data(data);
        }
        if set == 0 {
            let what = format!("{upstream}: {server}: no worker goes by it yet");
            let help = "it is remembered for workers to come, unless a change under way says another \
                        thing of the server; `beltway status` tells";
            let text = refusal::message(&what, None, &[help.to_owned()]);
            return Reply::failed(1, text).with_data(data);
        }
        let what = match state {
            ServerState::Up if !out.is_empty() => "is up, and takes requests when it is well",
            ServerState::Up => "is up: it takes requests",
            ServerState::Drain => {
                "drains: it takes no requests but those of clients that a cookie binds to it"
            }
            ServerState::Down => "is down: it takes no requests",
        };
        let mut text = format!("{upstream}: {server} {what}\n");
        if *state == ServerState::Up && !out.is_empty() {
            text.push_str(&format!("warning: it is left out for now: {out}\n"));
        }
        if !self.has_other(upstream) {
            text.push_str(&format!(
                "warning: no server of {upstream} is up; requests are answered with 503\n"
            ));
        }
        Reply::done(text).with_data(data)
    }

    /// Whether the administrator leaves an upstream a server.
    fn has_other(&self, name: &str) -> bool {
        let in_force = self.in_force.and_then(|id| self.configurations.get(&id));
        let mut upstreams = in_force
            .iter()
            .flat_map(|configuration| &configuration.facts.upstreams);
        let upstream = upstreams.find(|upstream| upstream.name == name);
        upstream.is_none_or(|upstream| {
            let mut servers = upstream.servers.iter();
            servers.any(|server| self.words.state(name, server) == ServerState::Up)
        })
    }
}

fn find_upstream<'u>(
    upstreams: &'u [UpstreamFacts],
    name: &str,
) -> Result<&'u UpstreamFacts, String> {
    upstreams.iter().find(|it| it.name == name).ok_or_else(|| {
        let what = format!("there is no upstream `{name}`");
        let help = match upstreams {
            [] => "the configuration in force passes no requests on".to_owned(),
            _ => format!("there {}", list(upstreams.iter().map(|it| &it.name))),
        };
        refusal::message(&what, None, &[help])
    })
}

/// By its name, or by the host in it or its port, where no other server has that.
fn find_server<'u>(
    upstream: &'u UpstreamFacts,
    name: &str,
) -> Result<&'u (String, ServerState), String> {
    let servers = &upstream.servers;
    if let Some(found) = servers.iter().find(|(server, _)| server == name) {
        return Ok(found);
    }
    let refused = |what: &str, help: String| {
        let what = format!("{what} in the upstream `{}`", upstream.name);
        refusal::message(&what, None, &[help])
    };
    let has_part = |(server, _): &&(String, ServerState)| {
        let Some((host, port)) = server.rsplit_once(':') else {
            return false;
        };
        let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        // A path or a service has neither host nor port.
        let is_address = port.parse::<u16>().is_ok();
        is_address && (host == name || bare == Some(name) || name.strip_prefix(':') == Some(port))
    };
    let found: Vec<_> = servers.iter().filter(has_part).collect();
    match found[..] {
        [one] => return Ok(one),
        [] => {}
        _ => {
            let which = list(found.iter().map(|(server, _)| server));
            let what = format!("`{name}` is more than one server");
            return Err(refused(&what, format!("say which one: there {which}")));
        }
    }
    // `beltway status` writes an address behind its name.
    if let Some((host, _)) = name.split_once(" (")
        && servers.iter().any(|(server, _)| server == host)
    {
        let what = format!("`{name}` is one of the addresses of a server");
        let help = format!("say `{host}`, for all of its addresses: which they are may change");
        return Err(refused(&what, help));
    }
    Err(refused(
        &format!("there is no server `{name}`"),
        format!(
            "there {}; a name stands for all of its addresses",
            list(servers.iter().map(|(server, _)| server))
        ),
    ))
}

/// `is a`, `are a, b and 3 more`.
fn list<'n>(names: impl Iterator<Item = &'n String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    let be = if names.len() == 1 { "is" } else { "are" };
    let shown = names[..names.len().min(NAMES_MAX)].join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => format!("{be} {shown}"),
        more => format!("{be} {shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(servers: &[(&str, ServerState)]) -> Vec<UpstreamFacts> {
        let servers = servers.iter();
        vec![UpstreamFacts {
            name: "app".to_owned(),
            servers: servers
                .map(|(name, state)| ((*name).to_owned(), *state))
                .collect(),
        }]
    }

    fn said(server: &str, state: ServerState, configured: ServerState) -> Said {
        Said {
            upstream: "app".to_owned(),
            server: server.to_owned(),
            state,
            configured,
        }
    }

    #[test]
    fn a_word_stands_until_the_configuration_says_another_thing() {
        use ServerState::{Down, Drain, Up};
        let mut words = Words::default();
        let before = facts(&[("a:1", Up), ("b:1", Up), ("c:1", Drain)]);
        for (server, state, configured) in
            [("a:1", Drain, Up), ("b:1", Down, Up), ("c:1", Up, Drain)]
        {
            words.say(&said(server, state, configured));
        }
        words.keep_to(&before);
        assert_eq!(words.of(&before).len(), 3);
        // What another one would say is known before it is in force.
        let after = facts(&[("a:1", Up), ("b:1", Drain), ("d:1", Up)]);
        let standing = words.of(&after);
        assert_eq!(standing.len(), 1, "{standing:?}");
        assert_eq!((&*standing[0].server, standing[0].state), ("a:1", Drain));
        words.keep_to(&after);
        // Gone is gone, also when the configuration of before comes back.
        assert_eq!(words.of(&before), standing);
    }

    #[test]
    fn the_last_word_holds_and_one_that_says_the_same_as_the_configuration_is_none() {
        use ServerState::{Down, Drain, Up};
        let mut words = Words::default();
        let upstreams = facts(&[("a:1", Up)]);
        let server = ("a:1".to_owned(), Up);
        for state in [Drain, Down] {
            words.say(&said("a:1", state, Up));
            assert_eq!(words.state("app", &server), state);
        }
        assert_eq!(words.of(&upstreams).len(), 1);
        words.say(&said("a:1", Up, Up));
        assert!(words.of(&upstreams).is_empty());
    }

    #[test]
    fn servers_are_found_by_name_or_host_and_errors_say_what_there_is() {
        let up = ServerState::Up;
        let upstreams = facts(&[
            ("10.0.0.1:80", up),
            ("10.0.0.2:80", up),
            ("10.0.0.2:81", up),
            ("[::1]:80", up),
            ("localhost:3000", up),
            ("unix:/run/app.sock", up),
        ]);
        let find = |name: &str| find_server(&upstreams[0], name).map(|(name, _)| name.as_str());
        for (name, found) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1", "10.0.0.1:80"),
            ("10.0.0.2:81", "10.0.0.2:81"),
            ("::1", "[::1]:80"),
            (":81", "10.0.0.2:81"),
            ("[::1]", "[::1]:80"),
            (":3000", "localhost:3000"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(find(name), Ok(found));
        }
        for (name, told) in [
            (
                "10.0.0.2",
                "say which one: there are 10.0.0.2:80, 10.0.0.2:81",
            ),
            ("10.0.0.3:80", "there are 10.0.0.1:80, 10.0.0.2:80"),
            ("", "there is no server ``"),
            (
                ":80",
                "say which one: there are 10.0.0.1:80, 10.0.0.2:80, [::1]:80",
            ),
            ("unix", "there is no server `unix`"),
            ("localhost:3000 (127.0.0.1:3000)", "say `localhost:3000`"),
        ] {
            let error = find(name).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
        let error = find_upstream(&upstreams, "shop").unwrap_err();
        assert!(
            error.contains("`shop`") && error.contains("there is app"),
            "{error}"
        );
        assert!(
            find_upstream(&[], "shop")
                .unwrap_err()
                .contains("passes no requests")
        );
        let many: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
        assert!(list(many.iter()).ends_with("s19 and 80 more"));
    }
}

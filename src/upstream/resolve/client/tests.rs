//! What name servers say and don't, over real sockets.

use simple_dns::{PacketFlag, RCODE};

use super::*;
use crate::upstream::resolve::testing::{NameServer, Transport, answer, servers, settings};

const NAME: &str = "_http._tcp.app.example";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn targets(services: &Services) -> Vec<(&str, u16)> {
    let servers = services.servers.iter();
    servers.map(|it| (&*it.target, it.port)).collect()
}

fn good(query: &[u8]) -> Vec<u8> {
    servers(query, &[(1, 1, 80, "n1.example", 60)])
}

fn bad(query: &[u8]) -> Vec<u8> {
    servers(query, &[(1, 1, 666, "n6.example", 60)])
}

#[test]
fn an_answer_by_udp_is_taken() {
    let server = NameServer::start(|query, _| vec![good(query)]);
    let services = ask(&settings(&[&server]), NAME, soon()).unwrap();
    assert_eq!(targets(&services), [("n1.example", 80)]);
    assert_eq!(server.asked(), 1);
}

#[test]
fn what_does_not_answer_the_question_is_passed_over() {
    let server = NameServer::start(|query, _| {
        let mut wrong_id = bad(query);
        wrong_id[1] ^= 1;
        let other = answer(query, |packet| packet.questions.clear());
        let echo = query.to_vec();
        vec![b"garbage".to_vec(), wrong_id, other, echo, good(query)]
    });
    let services = ask(&settings(&[&server]), NAME, soon()).unwrap();
    assert_eq!(targets(&services), [("n1.example", 80)]);
}

#[test]
fn others_than_the_server_are_not_heard() {
    use std::net::UdpSocket;
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    // The answer comes from another port than was asked.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (count, peer) = server.recv_from(&mut buffer).unwrap();
        stranger.send_to(&bad(&buffer[..count]), peer).unwrap();
        server.send_to(&good(&buffer[..count]), peer).unwrap();
    });
    let settings = Settings {
        servers: vec![address],
        ..Settings::default()
    };
    let services = ask(&settings, NAME, soon()).unwrap();
    assert_eq!(targets(&services), [("n1.example", 80)]);
}

#[test]
fn a_cut_answer_is_asked_for_by_tcp() {
    let server = NameServer::start(|query, transport| match transport {
        Transport::Udp => vec![answer(query, |it| it.set_flags(PacketFlag::TRUNCATION))],
        Transport::Tcp => vec![good(query)],
    });
    let services = ask(&settings(&[&server]), NAME, soon()).unwrap();
    assert_eq!(targets(&services), [("n1.example", 80)]);
    assert_eq!(server.asked(), 2);
    let by_tcp = Settings {
        tcp: true,
        ..settings(&[&server])
    };
    ask(&by_tcp, NAME, soon()).unwrap();
    assert_eq!(server.asked(), 3);
}

#[test]
fn the_next_server_is_asked_when_one_is_silent_or_fails() {
    let silent = NameServer::start(|_, _| Vec::new());
    let failing =
        NameServer::start(|query, _| vec![answer(query, |it| *it.rcode_mut() = RCODE::Refused)]);
    let malformed = NameServer::start(|query, _| {
        let mut message = good(query);
        message.truncate(message.len() - 2);
        vec![message]
    });
    let well = NameServer::start(|query, _| vec![good(query)]);
    let all = [&silent, &failing, &malformed, &well];
    let services = ask(&settings(&all), NAME, soon()).unwrap();
    assert_eq!(targets(&services), [("n1.example", 80)]);
    assert!(all.iter().all(|server| server.asked() == 1));
    for (server, said) in [
        (&silent, "no answer in time"),
        (&failing, "REFUSED"),
        (&malformed, "malformed"),
    ] {
        let error = ask(&settings(&[server]), NAME, soon()).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let twice = Settings {
        attempts: 2,
        ..settings(&[&failing])
    };
    ask(&twice, NAME, soon()).unwrap_err();
    assert_eq!(failing.asked(), 4);
}

#[test]
fn what_is_so_is_asked_for_once() {
    let none =
        NameServer::start(|query, _| vec![answer(query, |it| *it.rcode_mut() = RCODE::NameError)]);
    let other = NameServer::start(|query, _| vec![good(query)]);
    let error = ask(&settings(&[&none, &other]), NAME, soon()).unwrap_err();
    assert!(error.to_string().contains("NXDOMAIN"), "{error}");
    assert_eq!((none.asked(), other.asked()), (1, 0));
}

#[test]
fn nobody_there_is_noticed_at_once_and_the_deadline_holds() {
    // Where somebody else has the port by then, the next one is tried.
    let is_noticed = (0..3).any(|_| {
        let nobody = {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap()
        };
        let patient = Settings {
            servers: vec![nobody],
            ..Settings::default()
        };
        let begin = Instant::now();
        let answer = ask(&patient, NAME, soon());
        answer.is_err_and(|error| error.to_string().contains("refused"))
            && begin.elapsed() < Duration::from_secs(4)
    });
    assert!(is_noticed, "it is refused, and that at once");
    let begin = Instant::now();
    let silent = NameServer::start(|_, _| Vec::new());
    let patient = Settings {
        servers: vec![silent.address],
        ..Settings::default()
    };
    let short = Instant::now() + Duration::from_millis(100);
    ask(&patient, NAME, short).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(4), "it waited on");
    let error = ask(&patient, NAME, Instant::now()).unwrap_err();
    assert!(matches!(error, DnsError::NoTime), "{error}");
    assert!(matches!(
        ask(&patient, "a..b c", soon()),
        Err(DnsError::BadName)
    ));
}

#[test]
fn ids_and_ports_differ_from_question_to_question() {
    use std::sync::{Arc, Mutex};
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let server = NameServer::start(move |query, _| {
        told.lock().unwrap().push([query[0], query[1]]);
        vec![good(query)]
    });
    for _ in 0..8 {
        ask(&settings(&[&server]), NAME, soon()).unwrap();
    }
    let mut ids = seen.lock().unwrap().clone();
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() > 4, "{ids:?}");
}

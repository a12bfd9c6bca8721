//! What the system knows of a connection on which nothing moves, for whoever has to find out why.

use std::fs;

/// Both ends of the connections of a local port: state, bytes that wait, and whose they are.
pub(crate) fn of_port(port: u16) -> String {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let port = format!(":{port:04X}");
    let ends: Vec<String> = table
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .filter(|words: &Vec<&str>| words.len() > 9)
        .filter(|words| words[1].ends_with(&port) || words[2].ends_with(&port))
        .map(|words| {
            let whose = match words[1].ends_with(&port) {
                true => "ours".to_owned(),
                false => format!("the server's, {}", owners(words[9])),
            };
            format!(
                "{whose}: state {}, to send and to read {}",
                words[3], words[4]
            )
        })
        .collect();
    match ends.is_empty() {
        true => "the system knows no such connection".to_owned(),
        false => ends.join("; "),
    }
}

/// The processes that have a socket of this inode open.
fn owners(inode: &str) -> String {
    let link = format!("socket:[{inode}]");
    let mut owners = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let descriptors = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        if links.any(|of| of.to_string_lossy() == link) {
            owners.push(process.file_name().to_string_lossy().into_owned());
        }
    }
    match owners.is_empty() {
        true => "which no process has open".to_owned(),
        false => format!("open in process {}", owners.join(", ")),
    }
}

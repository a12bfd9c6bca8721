//! wrk as a second opinion. It saturates its core before a lean server does.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::body;
use crate::launch;
use crate::measure::Plan;
use crate::workload::Workload;

/// The installed wrk.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join("wrk"))
        .find(|program| program.is_file())
}

/// Requests per second as wrk counts them, from one thread on the generator's core.
///
/// # Errors
/// When it fails, or reports errors.
pub fn measure(
    program: &Path,
    plan: &Plan,
    workload: &Workload,
    address: SocketAddr,
) -> io::Result<f64> {
    // Its durations are whole seconds.
    let seconds = plan.seconds.ceil().max(1.0) as u64;
    let command = [
        program.as_os_str().to_owned(),
        "-t1".into(),
        format!("-c{}", workload.connections).into(),
        format!("-d{seconds}s").into(),
        format!("http://{address}/{}", body::file_name(workload.body_len)).into(),
    ];
    let limit = Duration::from_secs(seconds + 10);
    let output = launch::run(&command, plan.client_cpu, limit)?;
    parse(&String::from_utf8_lossy(&output))
        .ok_or_else(|| io::Error::other("wrk saw errors, or said no figure"))
}

fn parse(output: &str) -> Option<f64> {
    if output.contains("Socket errors:") || output.contains("Non-2xx") {
        return None;
    }
    let figure = output
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"))?;
    figure.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_figure_unless_there_were_errors() {
        let good =
            "  60000 requests in 1.00s, 70.9MB read\nRequests/sec:  60123.45\nTransfer/sec: 1\n";
        assert_eq!(parse(good), Some(60123.45));
        assert_eq!(parse(&format!("Non-2xx or 3xx responses: 5\n{good}")), None);
        assert_eq!(parse("unable to connect"), None);
    }
}

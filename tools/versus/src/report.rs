//! The results as a page with charts, for the project's readers.

use std::fs;
use std::io;
use std::path::Path;

use crate::chart::{Bar, Chart, Group, Scale, Series};
use crate::table::{self, Grid, Header};
use crate::verdict::{Bound, Ratio, Summary};
use crate::workload::{Cores, Pace, Run, Via, Workload};

/// Everything that was measured.
pub struct Results<'a> {
    /// On what, and how.
    pub header: &'a Header,
    /// In order.
    pub workloads: &'a [Workload],
    /// Of each workload, in the peers' order.
    pub summaries: &'a [Vec<Summary>],
}

/// Writes `results.md` and its charts into `directory`, `command` beside them. A chart for which nothing was
/// measured is removed: it would be of another run.
///
/// # Errors
/// Those of the file system.
pub fn write(directory: &Path, command: &str, results: &Results<'_>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut page = format!(
        "# Results\n\nWritten by\n\n```sh\n{command}\n```\n\nto be read with the machine in mind:\n\n\
         ```text\n{}```\n",
        results.header.text(),
    );
    for (name, chart) in results.charts() {
        let file = directory.join(format!("{name}.svg"));
        if chart.groups.is_empty() {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => continue,
            }
        }
        fs::write(&file, chart.svg())?;
        page.push_str(&format!("\n![{}]({name}.svg)\n", chart.title));
    }
    for (workload, summaries) in results.workloads.iter().zip(results.summaries) {
        page.push_str(&Grid::new(workload, summaries).markdown());
    }
    page.push_str(&table::conclusion(results.summaries));
    fs::write(directory.join("results.md"), page)
}

impl Results<'_> {
    fn charts(&self) -> Vec<(&'static str, Chart)> {
        let files = |workload: &Workload| workload.via == Via::Files && workload.tls.is_none();
        let proxy = |workload: &Workload| workload.via != Via::Files && workload.tls.is_none();
        let tls = |workload: &Workload| workload.tls.is_some();
        vec![
            (
                "files-throughput",
                self.ratios("Files: throughput", &files, &throughput),
            ),
            (
                "files-cpu",
                self.ratios("Files: work per processor second", &files, &cpu),
            ),
            (
                "proxy-throughput",
                self.ratios("Proxy: throughput", &proxy, &throughput),
            ),
            (
                "proxy-cpu",
                self.ratios("Proxy: work per processor second", &proxy, &cpu),
            ),
            (
                "tls-throughput",
                self.ratios("TLS: throughput", &tls, &throughput),
            ),
            (
                "tls-cpu",
                self.ratios("TLS: work per processor second", &tls, &cpu),
            ),
            ("latency", self.latency()),
            ("memory", self.memory()),
        ]
    }

    /// A chart of a ratio to nginx's best, which is the line at 1.
    fn ratios(
        &self,
        title: &str,
        chosen: &dyn Fn(&Workload) -> bool,
        of: &dyn Fn(&Summary) -> Option<(f64, String)>,
    ) -> Chart {
        let mut chart = empty(
            title,
            "× nginx's best configuration of the workload; more is better",
        );
        chart.reference = Some((1.0, "nginx".to_owned()));
        for (workload, summaries) in self.workloads.iter().zip(self.summaries) {
            let loaded = matches!(workload.run, Run::Load { .. });
            let paced = matches!(workload.pace, Pace::Rate(_));
            if loaded && !paced && workload.cores == Cores::One && chosen(workload) {
                let others = summaries.iter().filter(|one| one.family != "nginx");
                let bars = others.filter_map(|one| of(one).map(|found| (one, found)));
                chart.add(workload.title, best_of_each(bars.collect(), f64::max));
            }
        }
        chart
    }

    /// Latencies at fixed rates.
    fn latency(&self) -> Chart {
        let mut chart = empty(
            "Latency at a fixed rate",
            "µs from when a request was meant to be sent, on a logarithmic scale; less is better",
        );
        chart.scale = Scale::Logarithmic(10.0);
        for (workload, summaries) in self.workloads.iter().zip(self.summaries) {
            let Pace::Rate(rate) = workload.pace else {
                continue;
            };
            for (name, of) in [
                ("p50", (|one| one.latency_us.p50) as fn(&Summary) -> f64),
                ("p99", |one| one.latency_us.p99),
                ("p999", |one| one.latency_us.p999),
            ] {
                let clean = summaries.iter().filter(|one| one.clean());
                let bars = clean.map(|one| (one, (of(one), format!("{:.0}", of(one)))));
                let bars = bars.filter(|(_, (value, _))| *value > 0.0);
                let label = format!("{rate} requests/s, {name}");
                chart.add(&label, best_of_each(bars.collect(), f64::min));
            }
        }
        chart
    }

    /// Memory of connections without work.
    fn memory(&self) -> Chart {
        let mut chart = empty(
            "Memory of an idle connection",
            "bytes of user memory each; less is better",
        );
        for (workload, summaries) in self.workloads.iter().zip(self.summaries) {
            let clean = summaries.iter().filter(|one| one.clean());
            let bars = clean.filter_map(|one| {
                let each = one.memory_per_connection?.max(0.0);
                Some((one, (each, format!("{each:.0}"))))
            });
            chart.add(workload.title, best_of_each(bars.collect(), f64::min));
        }
        chart
    }
}

fn empty(title: &str, subtitle: &str) -> Chart {
    Chart {
        title: title.to_owned(),
        subtitle: subtitle.to_owned(),
        scale: Scale::Linear,
        series: Vec::new(),
        groups: Vec::new(),
        reference: None,
    }
}

fn throughput(summary: &Summary) -> Option<(f64, String)> {
    let Ratio { value, bound } = summary.throughput_ratio?;
    let limited = match bound {
        Bound::Exact => "",
        _ => " (load's limit)",
    };
    Some((value, format!("{value:.2}×{limited}")))
}

fn cpu(summary: &Summary) -> Option<(f64, String)> {
    let value = summary.cpu_ratio?;
    Some((value, format!("{value:.2}×")))
}

/// A name, a value and what stands behind it.
type Named = (&'static str, f64, String);

/// One bar for each family, of its better configuration; Beltway has one for each engine.
fn best_of_each(found: Vec<(&Summary, (f64, String))>, better: fn(f64, f64) -> f64) -> Vec<Named> {
    let mut bars: Vec<Named> = Vec::new();
    for (summary, (value, text)) in found {
        let name = match summary.family {
            "beltway" => summary.peer,
            family => family,
        };
        match bars.iter_mut().find(|bar| bar.0 == name) {
            Some(bar) if better(bar.1, value) != bar.1 => *bar = (name, value, text),
            Some(_) => {}
            None => bars.push((name, value, text)),
        }
    }
    bars
}

impl Chart {
    /// Adds a group, unless it is empty.
    fn add(&mut self, label: &str, bars: Vec<Named>) {
        if bars.is_empty() {
            return;
        }
        let bars = bars
            .into_iter()
            .map(|(name, value, text)| Bar {
                series: self.place_of(name),
                value,
                text,
            })
            .collect();
        self.groups.push(Group {
            label: label.to_owned(),
            bars,
        });
    }

    fn place_of(&mut self, name: &str) -> usize {
        let place = self.series.iter().position(|one| one.name == name);
        place.unwrap_or_else(|| {
            self.series.push(Series {
                name: name.to_owned(),
                colour: colour_of(name),
            });
            self.series.len() - 1
        })
    }
}

/// The same in each chart, and told apart by those who see few colours (Okabe and Ito).
fn colour_of(name: &str) -> &'static str {
    match name {
        "beltway uring" => "#0072b2",
        "beltway epoll" => "#56b4e9",
        "nginx" => "#009e73",
        "lighttpd" => "#e69f00",
        "haproxy" => "#d55e00",
        "apache" => "#cc79a7",
        "caddy" => "#f0e442",
        "h2o" => "#999999",
        _ => "#444444",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(peer: &'static str, family: &'static str, value: f64) -> Summary {
        Summary {
            peer,
            family,
            cpu_ratio: Some(value),
            memory_per_connection: Some(value),
            ..Summary::default()
        }
    }

    #[test]
    fn a_family_has_one_bar_and_beltway_one_for_each_engine() {
        let all = [
            summary("beltway uring", "beltway", 2.0),
            summary("beltway epoll", "beltway", 1.5),
            summary("lighttpd A", "lighttpd", 0.8),
            summary("lighttpd B", "lighttpd", 0.9),
        ];
        let found = || all.iter().map(|one| (one, cpu(one).expect("a ratio")));
        let names = |better| -> Vec<(&str, f64)> {
            let bars = best_of_each(found().collect(), better);
            bars.iter().map(|bar| (bar.0, bar.1)).collect()
        };
        let engines = [("beltway uring", 2.0), ("beltway epoll", 1.5)];
        assert_eq!(names(f64::max)[..2], engines);
        assert_eq!(names(f64::max)[2..], [("lighttpd", 0.9)]);
        assert_eq!(names(f64::min)[2..], [("lighttpd", 0.8)]);
    }

    #[test]
    fn a_page_shows_the_charts_there_are_and_removes_the_others() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let workloads = crate::workload::select(&["idle".to_owned()]).expect("a known name");
        let summaries = [vec![summary("beltway uring", "beltway", 500.0)]];
        let header = Header::default();
        let results = Results {
            header: &header,
            workloads: &workloads,
            summaries: &summaries,
        };
        fs::write(directory.path().join("latency.svg"), "old").expect("a file");
        write(directory.path(), "versus --write x", &results).expect("a page");
        let page = fs::read_to_string(directory.path().join("results.md")).expect("the page");
        assert!(page.contains("(memory.svg)") && !page.contains("latency.svg"));
        assert!(page.contains("versus --write x") && page.contains("10 000 idle connections"));
        assert!(directory.path().join("memory.svg").is_file());
        assert!(!directory.path().join("latency.svg").exists());
    }
}

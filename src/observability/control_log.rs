//! The control log: what the server does and what goes wrong, for people and for journals.
//!
//! A line on standard error per event: `2026-11-20T10:00:00Z INFO message key=value`. Values that
//! came from outside are escaped, so that one event is always one line.
//!
//! Once the server runs, a thread of its own writes the lines: a pipe that nobody reads must not stall
//! a core that has something to say. What doesn't fit into its queue is dropped and counted.

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Registry, reload};

use super::escape::{Style, escape};
use super::sink::{Sink, SinkHandle};
use crate::http::semantics::date;

/// What is logged: this and everything worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Off,
    /// What makes requests fail.
    Error,
    /// And what may need attention.
    Warn,
    /// And what the server does: start, engine, drain.
    #[default]
    Info,
    /// And details that help to find a fault.
    Debug,
    /// And steps of the engine. Compiled in for development only: a release build has up to `Debug`.
    Trace,
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(UnknownLevel),
        }
    }
}

/// A word that names no level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownLevel;

impl fmt::Display for UnknownLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a log level is one of off, error, warn, info, debug and trace")
    }
}

impl Error for UnknownLevel {}

/// Whether levels are coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    /// On a terminal, unless the environment has a `NO_COLOR` that isn't empty.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Colour {
    fn decide(self, is_terminal: bool, no_color: bool) -> bool {
        match self {
            Self::Auto => is_terminal && !no_color,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// The process has a control log already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyStarted;

impl fmt::Display for AlreadyStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the control log was started before")
    }
}

impl Error for AlreadyStarted {}

/// Starts the control log of the process: what `tracing` macros say from here on goes to standard
/// error, at once until [`ControlLog::detach`].
///
/// # Errors
/// When the process has one already.
pub fn init(level: Level, colour: Colour) -> Result<Arc<ControlLog>, AlreadyStarted> {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let line = Line {
        coloured: colour.decide(io::stderr().is_terminal(), no_color),
        now_unix,
    };
    let log = Arc::<ControlLog>::default();
    let (subscriber, handle) = subscriber(level, line, Arc::clone(&log));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| AlreadyStarted)?;
    // It was made a moment ago, and nobody has set it.
    let _ = log.level.set(handle);
    Ok(log)
}

/// Where the lines go: to standard error, or to the queue of the thread that writes them there.
#[derive(Debug, Default)]
pub struct ControlLog {
    queue: OnceLock<SinkHandle>,
    /// Changes what is logged.
    level: OnceLock<reload::Handle<LevelFilter, Registry>>,
    /// Lines that found the queue full and that the log doesn't tell of yet.
    dropped: AtomicU64,
}

impl ControlLog {
    /// Lets a thread write the lines from now on; whoever logs never waits for standard error again.
    /// Dropping the sink waits a moment for the last lines; what is logged after that is lost.
    ///
    /// # Errors
    /// EMFILE, or EAGAIN when the system refuses another thread.
    pub fn detach(&self) -> io::Result<Sink> {
        self.detach_to(io::stderr().as_fd().try_clone_to_owned()?)
    }

    /// Logs this and everything worse from now on.
    pub fn set_level(&self, level: Level) {
        if let Some(handle) = self.level.get() {
            // It fails only when the subscriber is gone, and nothing is logged then.
            let _ = handle.modify(|filter| *filter = filter_of(level));
        }
    }

    fn detach_to(&self, fd: OwnedFd) -> io::Result<Sink> {
        let sink = Sink::start_on(fd, "standard error".to_owned())?;
        // A second call changes nothing: the first one's thread goes on.
        let _ = self.queue.set(sink.handle());
        Ok(sink)
    }

    /// Queues a line, behind the number of those that were dropped before it.
    fn enqueue(&self, queue: &SinkHandle, line: &[u8]) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let mut batch = Vec::with_capacity(line.len());
        if dropped > 0 {
            let stamp = date::rfc3339(now_unix());
            let report = format!(" WARN lines of this log were dropped lines={dropped}\n");
            batch.extend_from_slice(&stamp);
            batch.extend_from_slice(report.as_bytes());
        }
        batch.extend_from_slice(line);
        if queue.submit(batch).is_err() {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }
}

impl Write for &ControlLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.queue.get() {
            Some(queue) => self.enqueue(queue, line),
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Seconds since 1970 by the wall clock; 0 before that.
fn now_unix() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().cast_signed())
}

fn filter_of(level: Level) -> LevelFilter {
    match level {
        Level::Off => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

/// Writes each event at one go, so that lines of threads don't mix; with what changes the level.
fn subscriber<W>(
    level: Level,
    line: Line,
    writer: W,
) -> (
    impl Subscriber + Send + Sync,
    reload::Handle<LevelFilter, Registry>,
)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter_of(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(line.coloured)
        .event_format(line);
    (
        tracing_subscriber::registry().with(filter).with(lines),
        handle,
    )
}

/// How an event becomes a line.
#[derive(Clone, Copy, Debug)]
struct Line {
    coloured: bool,
    now_unix: fn() -> i64,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        let stamp = date::rfc3339((self.now_unix)());
        write!(
            writer,
            "{} ",
            std::str::from_utf8(&stamp).unwrap_or_default()
        )?;
        match colour_of(level) {
            code if self.coloured => write!(writer, "\x1b[{code}m{level}\x1b[0m")?,
            _ => write!(writer, "{level}")?,
        }
        if !fields.message.is_empty() {
            write!(writer, " {}", fields.message)?;
        }
        writeln!(writer, "{}", fields.rest)
    }
}

/// The number of the terminal's colour (ECMA-48 SGR) for a level.
fn colour_of(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 31,
        tracing::Level::WARN => 33,
        tracing::Level::INFO => 32,
        tracing::Level::DEBUG => 34,
        tracing::Level::TRACE => 35,
    }
}

/// Collects the message and ` key=value` for everything else, escaped.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn add(&mut self, field: &Field, text: &str) {
        let mut escaped = Vec::with_capacity(text.len());
        if field.name() == "message" {
            escape(&mut escaped, text.as_bytes(), Style::Prose);
            self.message = String::from_utf8_lossy(&escaped).into_owned();
            return;
        }
        let quote = text.is_empty() || text.contains([' ', '"', '=', '\\']);
        let quote = if quote { "\"" } else { "" };
        escape(&mut escaped, text.as_bytes(), Style::Text);
        let escaped = String::from_utf8_lossy(&escaped);
        self.rest
            .push_str(&format!(" {}={quote}{escaped}{quote}", field.name()));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: Level, coloured: bool, work: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let line = Line {
            coloured,
            now_unix: || 1_795_168_800,
        };
        tracing::subscriber::with_default(subscriber(level, line, move || writer.clone()).0, work);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_has_time_level_message_and_fields() {
        let log = logged(Level::Info, false, || {
            tracing::info!(
                engine = "ring",
                cores = 4,
                why = "all of it works",
                "listening"
            );
            tracing::warn!(error = %io::Error::from_raw_os_error(28), "log");
            tracing::error!("plain");
        });
        assert_eq!(
            log,
            "2026-11-20T10:00:00Z INFO listening engine=ring cores=4 why=\"all of it works\"\n\
             2026-11-20T10:00:00Z WARN log error=\"No space left on device (os error 28)\"\n\
             2026-11-20T10:00:00Z ERROR plain\n"
        );
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let log = logged(Level::Info, false, || {
            tracing::info!(
                host = "a\"b\n\u{1b}[2J",
                "it's \"quoted\"\r\n{}",
                "\u{202e}x"
            );
        });
        assert_eq!(
            log,
            "2026-11-20T10:00:00Z INFO it's \"quoted\"\\x0d\\x0a\\xe2\\x80\\xaex \
             host=\"a\\\"b\\x0a\\x1b[2J\"\n"
        );
    }

    #[test]
    fn the_level_filters() {
        let all = || {
            tracing::error!("e");
            tracing::warn!("w");
            tracing::info!("i");
            tracing::debug!("d");
        };
        for (word, lines) in [
            ("off", 0),
            ("error", 1),
            ("warn", 2),
            ("info", 3),
            ("debug", 4),
        ] {
            let log = logged(word.parse().unwrap(), false, all);
            assert_eq!(log.lines().count(), lines, "{word}");
        }
        assert_eq!("trace".parse(), Ok(Level::Trace));
        assert_eq!("INFO".parse::<Level>(), Err(UnknownLevel));
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert!(Colour::Auto.decide(true, false));
        assert!(!Colour::Auto.decide(true, true));
        assert!(!Colour::Auto.decide(false, false));
        assert!(Colour::Always.decide(false, true));
        assert!(!Colour::Never.decide(true, false));
        let log = logged(Level::Info, true, || tracing::info!("hello"));
        assert_eq!(log, "2026-11-20T10:00:00Z \u{1b}[32mINFO\u{1b}[0m hello\n");
    }

    #[test]
    fn the_level_changes_while_it_logs() {
        let captured = Captured::default();
        let line = Line {
            coloured: false,
            now_unix: || 0,
        };
        let writer = captured.clone();
        let (subscriber, handle) = subscriber(Level::Warn, line, move || writer.clone());
        let log = ControlLog::default();
        log.level.set(handle).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("one");
            log.set_level(Level::Info);
            tracing::info!("two");
            log.set_level(Level::Error);
            tracing::info!("three");
        });
        let bytes = captured.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("two"), "{text}");
        assert!(!text.contains("one") && !text.contains("three"), "{text}");
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        const LINES: usize = 20_000;
        let (mut reader, writer) = io::pipe().unwrap();
        let log = Arc::<ControlLog>::default();
        let sink = log.detach_to(writer.into()).unwrap();
        let line = Line {
            coloured: false,
            now_unix: || 0,
        };
        // Far more than the pipe and the queue hold, and nobody reads: a wait would be for ever.
        tracing::subscriber::with_default(
            subscriber(Level::Info, line, Arc::clone(&log)).0,
            || {
                (0..LINES).for_each(|n| tracing::info!(n, "{}", "x".repeat(100)));
            },
        );
        let dropped = log.dropped.load(Ordering::Relaxed);
        assert!(dropped > 0 && dropped < LINES as u64, "{dropped}");
        let text = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        // The queue has room again when the writer has been able to write once.
        while log.dropped.load(Ordering::Relaxed) > 0 {
            (&*log).write_all(b"last\n").unwrap();
            std::thread::yield_now();
        }
        drop(sink);
        let text = text.join().unwrap().unwrap();
        assert!(text.contains(" WARN lines of this log were dropped lines="));
        assert!(text.ends_with("last\n"));
        let whole = text
            .lines()
            .filter(|line| line.contains(" INFO xxx"))
            .count();
        assert_eq!(
            whole as u64 + dropped,
            LINES as u64,
            "each line is there or counted"
        );
    }
}

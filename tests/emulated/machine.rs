//! The emulated machine: a kernel, a file system in memory, and what it says on its serial line.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::server::PROGRAM;

/// Ten times what it takes alone, for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(180);

/// The variable that says to a test that it is in the machine.
pub(crate) const INSIDE: &str = "EMULATED";

/// What a machine has.
pub(crate) struct Equipment<'a> {
    pub(crate) memory_mib: u32,
    /// Modules of its kernel.
    pub(crate) modules: &'a [&'a str],
    /// A file system that is mounted at /srv.
    pub(crate) disk: Option<&'a Path>,
}

/// What an emulated machine takes.
pub(crate) struct Machine {
    qemu: PathBuf,
    /// One that needs no library.
    busybox: PathBuf,
    kernel: PathBuf,
    /// The directory of its modules.
    modules: PathBuf,
}

impl Machine {
    /// What there is of it.
    pub(crate) fn find() -> Result<Self, String> {
        if !cfg!(target_arch = "x86_64") {
            return Err("this is no x86-64".to_owned());
        }
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/emulated");
        let kernel = first_in(&unpacked.join("boot"), "vmlinuz-")
            .ok_or_else(|| format!("no kernel in {}", unpacked.join("boot").display()))?;
        let modules = first_in(&unpacked.join("lib/modules"), "")
            .ok_or("the kernel has no modules beside it")?;
        let found = |name: &str| in_path(name).ok_or_else(|| format!("no {name}"));
        let busybox = found("busybox")?;
        if !libraries(&busybox).is_empty() {
            return Err("the busybox here is not static".to_owned());
        }
        Ok(Self {
            qemu: found("qemu-system-x86_64")?,
            busybox,
            kernel,
            modules,
        })
    }

    /// Boots it, runs a test of this program in it, and gives all that it said.
    pub(crate) fn run(&self, equipment: &Equipment<'_>, test: &str) -> String {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = directory.path().join("files.cpio");
        fs::write(
            &files,
            self.files(equipment.modules, test, directory.path()),
        )
        .unwrap();
        let mut command = Command::new(&self.qemu);
        if let Some(disk) = equipment.disk {
            let disk = disk.display();
            let drive = format!("file={disk},if=virtio,format=raw,readonly=on,cache=none");
            command.args(["-drive", &drive]);
        }
        let mut qemu = command
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", &equipment.memory_mib.to_string()])
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&files)
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("qemu starts");
        let mut serial = qemu.stdout.take().expect("a pipe");
        let said = thread::spawn(move || {
            let mut said = Vec::new();
            let _ = serial.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        let deadline = Instant::now() + PATIENCE;
        while qemu.try_wait().expect("our child").is_none() {
            if Instant::now() > deadline {
                let _ = qemu.kill();
                let _ = qemu.wait();
                eprintln!("{}", said.join().expect("it only reads"));
                panic!("the emulated machine did not end within {PATIENCE:?}");
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        said.join().expect("it only reads")
    }

    /// The file system of the machine.
    fn files(&self, modules: &[&str], test: &str, scratch: &Path) -> Vec<u8> {
        let mut archive = Archive::default();
        archive.file("/bin/busybox", &fs::read(&self.busybox).unwrap());
        let mut needed = BTreeSet::new();
        let own = env::current_exe().expect("this test");
        for (program, place) in [(Path::new(PROGRAM), PROGRAM), (&own, "/test")] {
            archive.file(place, &without_symbols(program, scratch));
            needed.extend(libraries(program));
        }
        for library in needed {
            let place = library.to_str().expect("a plain name");
            archive.file(place, &fs::read(&library).unwrap());
        }
        let mut loading = Vec::new();
        for module in modules {
            self.load(module, &mut loading, &mut archive);
        }
        archive.file(
            "/etc/passwd",
            b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        );
        archive.file("/etc/group", b"root:x:0:\nnogroup:x:65534:\n");
        for directory in ["/proc", "/sys", "/dev", "/tmp", "/srv"] {
            archive.directory(directory);
        }
        let init = format!(
            "#!/bin/busybox sh\n\
             mount() {{ /bin/busybox mount -t $1 $1 $2; }}\n\
             mount proc /proc; mount sysfs /sys; mount devtmpfs /dev; mount tmpfs /tmp\n\
             /bin/busybox chmod 1777 /tmp\n\
             /bin/busybox ip link set lo up\n\
             for module in {}; do /bin/busybox insmod /modules/$module.ko; done\n\
             [ -b /dev/vda ] && /bin/busybox mount -t ext4 -o ro /dev/vda /srv\n\
             export RUST_BACKTRACE=1 {INSIDE}=1\n\
             cd /tmp; /test --exact {test} --nocapture --test-threads=1 2>&1\n\
             echo THE TEST ENDED WITH $?\n\
             /bin/busybox poweroff -f\n",
            loading.join(" ")
        );
        archive.file("/init", init.as_bytes());
        archive.finish()
    }

    /// Adds a module, and before it those that it depends on.
    fn load(&self, module: &str, loading: &mut Vec<String>, archive: &mut Archive) {
        // The kernel takes either for the other.
        let module = module.replace('-', "_");
        if loading.contains(&module) {
            return;
        }
        let Some(file) = find(&self.modules.join("kernel"), &module) else {
            // It is in the kernel itself.
            return;
        };
        let content = fs::read(&file).unwrap();
        for other in depends(&content) {
            self.load(&other, loading, archive);
        }
        archive.file(&format!("/modules/{module}.ko"), &content);
        loading.push(module);
    }
}

/// The first name in a directory that begins so, in their order.
fn first_in(directory: &Path, begin: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(begin))
        .map(|entry| entry.path())
        .min()
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// The file of a module, which may be in any directory beneath.
fn find(directory: &Path, module: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, module) {
                return Some(found);
            }
        } else if path.extension() == Some(OsStr::new("ko"))
            && let Some(name) = path.file_stem()
            && name.to_string_lossy().replace('-', "_") == module
        {
            return Some(path);
        }
    }
    None
}

/// The modules that a module names as those that it depends on (`depends=` of its `.modinfo`).
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|part| part == KEY);
    let rest = &module[at.expect("each module has the key") + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&rest[..end.expect("it ends")])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The shared libraries of a program, its loader among them; none of a static one.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Ok(output) = Command::new("ldd").arg(program).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// A program without what only a debugger needs, which is most of it.
fn without_symbols(program: &Path, scratch: &Path) -> Vec<u8> {
    let small = scratch.join("stripped");
    let stripped = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .arg(&small)
        .arg(program)
        .stderr(Stdio::null())
        .status();
    let is_stripped = stripped.is_ok_and(|status| status.success());
    fs::read(if is_stripped { &small } else { program }).unwrap()
}

/// An archive as the kernel unpacks it (cpio, form `newc`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds a file that can be run, and the directories that lead to it.
    fn file(&mut self, path: &str, content: &[u8]) {
        for parent in Path::new(path)
            .ancestors()
            .skip(1)
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            self.directory(parent.to_str().expect("a plain name"));
        }
        self.entry(path, 0o100_755, content);
    }

    fn directory(&mut self, path: &str) {
        if path != "/" && self.directories.insert(path.into()) {
            self.entry(path, 0o040_755, &[]);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let name = path.trim_start_matches('/');
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file of a program");
        let name_size = u32::try_from(name.len() + 1).expect("a name");
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08X}").expect("memory takes it");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

//! A separate PostgreSQL for a test, on a Unix socket. It ends with the test.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A running PostgreSQL.
pub(crate) struct Postgres {
    child: Child,
    pub(crate) folder: PathBuf,
}

/// The directory of initdb and postgres. Debian keeps these programs outside of PATH.
fn find_postgres_bin_dir() -> Option<PathBuf> {
    let in_path = std::env::var_os("PATH");
    let of_path = std::env::split_paths(in_path.as_ref()?).map(|folder| folder.join("initdb"));
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let of_debian = versions.map(|version| version.path().join("bin/initdb"));
    let found = of_debian.chain(of_path).find(|path| path.exists())?;
    Some(fs::canonicalize(found).unwrap().parent().unwrap().to_owned())
}

impl Postgres {
    /// Starts a PostgreSQL. Returns `None` and prints a message if it is not installed.
    pub(crate) fn start() -> Option<Self> {
        // The tests do not crash PostgreSQL itself, so fsync is off.
        Self::start_with(&["-c", "fsync=off"])
    }

    /// Starts a PostgreSQL that uses fsync, as in production.
    pub(crate) fn start_durable() -> Option<Self> {
        Self::start_with(&[])
    }

    fn start_with(settings: &[&str]) -> Option<Self> {
        let Some(programs) = find_postgres_bin_dir() else {
            // The output of `eprintln!` is captured in a passing test, so this writes to stderr directly.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no PostgreSQL here (initdb)");
            return None;
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // The path must be short because it holds a socket, and the user `postgres` must be able to enter it.
        let folder = std::env::temp_dir().join(format!("keypair-pg-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        let data = folder.join("data");
        let as_user = |program: &str| {
            let path = programs.join(program);
            let mut command = Command::new("setpriv");
            // With `--pdeathsig`, PostgreSQL ends however the test ends. It refuses to run as root, so its own user
            // runs it.
            command.args(["--pdeathsig", "INT"]);
            if is_root() {
                command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
            }
            command.arg(path);
            command
        };
        if is_root() {
            let status = Command::new("chown").arg("postgres:postgres").arg(&folder).status().unwrap();
            assert!(status.success());
        }
        let made = as_user("initdb")
            .args(["--auth=trust", "--username=keypair", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .current_dir("/")
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = as_user("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&folder)
            .args(["-c", "listen_addresses=", "-c", "max_connections=200"])
            .args(settings)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let postgres = Self { child, folder };
        let patience = Instant::now() + Duration::from_secs(60);
        let is_ready = || {
            let mut ready = Command::new(programs.join("pg_isready"));
            ready.arg("-q").arg("-h").arg(&postgres.folder).status().unwrap().success()
        };
        while !is_ready() {
            let log = fs::read_to_string(postgres.folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < patience, "{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(postgres)
    }

    /// The URL for `--store`.
    pub(crate) fn url(&self) -> String {
        format!("postgres://keypair@localhost/postgres?host={}", self.folder.display())
    }

    /// The path of the Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(".s.PGSQL.5432")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGKILL would leave shared memory behind. SIGINT is a fast shutdown, which does not wait for clients.
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim() == "0"
}

//! Real servers on the way to blobs: docker-registry, and nginx as mirror, as proxy, and with blobs of its own.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use testkit::docker_registry::{DockerRegistry, Options};
use testkit::run::wait_until;
use testkit::{fixture, oracle, skip};

use crate::support::*;

/// A running nginx.
struct Nginx {
    child: Child,
    /// Its mirror of the registry, its proxy for anything, and its server of files.
    hosts: [String; 3],
    log: std::path::PathBuf,
}

impl Nginx {
    /// A mirror of `registry`, a proxy, and the files of `blobs`, also at the socket `blobs.sock` beside them.
    fn start(dir: &Path, registry: &str, blobs: &Path) -> Option<Self> {
        let program = oracle::program("nginx")?;
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let hosts = listeners.map(|listener| listener.local_addr().unwrap().to_string());
        std::fs::create_dir_all(dir).unwrap();
        let (at, blobs) = (dir.display(), blobs.display());
        let [mirror, proxy, files] = &hosts;
        let config = format!(
            "daemon off;\npid {at}/pid;\nuser root;\nworker_processes 1;\nerror_log {at}/error.log;\nevents {{}}\n\
             http {{\n  log_format line '$server_port $request_method $status $request_uri';\n  access_log {at}/access.log line;\n  \
             client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  fastcgi_temp_path {at}/f;\n  \
             uwsgi_temp_path {at}/u;\n  scgi_temp_path {at}/s;\n  \
             server {{\n    listen {mirror};\n    location / {{ proxy_pass http://{registry}; }}\n    \
             location /ping {{ return 200; }}\n  }}\n  \
             server {{\n    listen {proxy};\n    location / {{ proxy_pass http://$http_host$uri$is_args$args; }}\n  }}\n  \
             server {{\n    listen {files};\n    listen unix:{at}/blobs.sock;\n    root {blobs};\n  }}\n}}\n"
        );
        let file = dir.join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(dir.join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("nginx to listen", || TcpStream::connect(files).is_ok());
        let log = dir.join("access.log");
        Some(Self { child, hosts, log })
    }

    /// How many blobs it was asked for at one of its hosts since the last question.
    fn reads(&self, host: &str) -> usize {
        let text = std::fs::read_to_string(&self.log).unwrap();
        let port = host.rsplit(':').next().unwrap();
        let start = format!("{port} GET 206");
        text.lines().filter(|line| line.starts_with(&start)).count()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn privileged_nginx_is_a_mirror_a_proxy_and_a_server_of_blobs() {
    let name = "privileged_nginx_is_a_mirror_a_proxy_and_a_server_of_blobs";
    let Some(place) = Place::new(name) else {
        return;
    };
    let server = DockerRegistry::start(Options {
        basic: Some(("me", "secret")),
        ..Options::default()
    });
    place.login(server.host());
    let blobs = place.path("blobs");
    std::fs::create_dir(&blobs).unwrap();
    let Some(nginx) = Nginx::start(&place.path("nginx"), server.host(), &blobs) else {
        return skip(name, "no nginx (apt-get install nginx-light)");
    };
    let [mirror, proxy, files] = &nginx.hosts;
    let source = format!(
        "oci:{}:{}",
        fixture::busybox().display(),
        fixture::BUSYBOX_TAG
    );
    let to = format!("{}/nydus:1", server.host());
    place.convert(&source, &to, &["--no-journal"]).ok();
    let mounted = |target: &str, more: &[&str]| {
        let mount = place.mount(target, more);
        assert_equal(&fixture::busybox_expect().compare(mount.path()));
        mount.stop().ok()
    };

    // The mirror passes on what the registry wants to see, which is not shown to it; with Dragonfly's header it is.
    let list = place.path("mirrors/_default");
    std::fs::create_dir_all(&list).unwrap();
    let dir = place.path("mirrors").display().to_string();
    let text = format!("[host.\"http://{mirror}\"]\nping_url = \"http://{mirror}/ping\"\n");
    std::fs::write(list.join("hosts.toml"), &text).unwrap();
    let ran = mounted(&to, &["--mirrors-dir", &dir]);
    assert_eq!(nginx.reads(mirror), 0, "{ran}");
    let header = format!(
        "header = {{ X-Dragonfly-Registry = \"http://{}\" }}\n",
        server.host()
    );
    std::fs::write(list.join("hosts.toml"), text.clone() + &header).unwrap();
    mounted(&to, &["--mirrors-dir", &dir]);
    assert!(nginx.reads(mirror) > 0);
    let before = nginx.reads(mirror);
    let ill = text.replace("/ping", "/v2/");
    std::fs::write(list.join("hosts.toml"), ill + &header).unwrap();
    let ran = mounted(&to, &["--mirrors-dir", &dir]);
    assert!(ran.stderr.contains("answers with status 401"), "{ran}");
    assert_eq!(nginx.reads(mirror), before);

    // The same blobs by a proxy, and from files.
    let target = format!("oci:{}:v6", place.path("image").display());
    let local = json!({"dir": blobs}).to_string();
    let backend = ["--backend-type", "localfs", "--backend-config", &local];
    place.convert(&source, &target, &backend).ok();
    let config = json!({"host": server.host(), "repo": "nydus", "scheme": "http", "proxy": {"url": format!("http://{proxy}")}});
    let config = config.to_string();
    let ran = mounted(
        &target,
        &["--backend-type", "registry", "--backend-config", &config],
    );
    let log = std::fs::read_to_string(&nginx.log).unwrap();
    assert!(nginx.reads(proxy) > 0, "{proxy}: {ran}{log}");
    let socket = place.path("nginx/blobs.sock").display().to_string();
    for address in [format!("http://{files}"), socket] {
        let config = json!({"addr": address}).to_string();
        mounted(
            &target,
            &["--backend-type", "http-proxy", "--backend-config", &config],
        );
    }
    assert!(nginx.reads(files) > 0);
}

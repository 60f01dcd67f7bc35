//! Containers, a network and volumes, by the command line of the container engine.

use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// Networks are tried until one is free.
const NETWORKS: u8 = 16;

/// A network of its own, and what is on it. Dropping it removes everything.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Begins the name of everything that is made.
    prefix: String,
    image: String,
    /// The first three numbers of each address.
    subnet: String,
    containers: Vec<String>,
}

/// Calls the engine; what it printed.
async fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("calling docker")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        bail!("docker {}: {}", arguments.join(" "), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

impl Engine {
    /// Makes a network that reaches nothing but this machine.
    pub(crate) async fn new(image: &str) -> anyhow::Result<Self> {
        docker(&["image", "inspect", "--format", "{{.Id}}", image])
            .await
            .with_context(|| format!("there is no image {image}; make it with deploy/local-image"))?;
        let prefix = format!("pontoon-torture-{}", std::process::id());
        let mut reason = None;
        for number in 0..NETWORKS {
            let subnet = format!("10.231.{}", 200 + number);
            let range = format!("{subnet}.0/24");
            match docker(&["network", "create", "--internal", "--subnet", &range, &prefix]).await {
                Ok(_) => {
                    return Ok(Self { prefix, image: image.to_owned(), subnet, containers: Vec::new() });
                }
                Err(error) => reason = Some(error),
            }
        }
        Err(reason.context("no network was tried")?)
    }

    /// The address of the store of that number.
    pub(crate) fn ip(&self, number: usize) -> String {
        format!("{}.{}", self.subnet, 10 + number)
    }

    fn named(&self, number: usize) -> String {
        format!("{}-n{number}", self.prefix)
    }

    /// Starts a container for a store, on a volume that is made if it is not there.
    pub(crate) async fn run(&mut self, number: usize, arguments: &[String]) -> anyhow::Result<()> {
        let (name, host, ip) = (self.named(number), format!("n{number}"), self.ip(number));
        let volume = format!("{name}:/data");
        let mut all =
            vec!["run", "--detach", "--name", &name, "--hostname", &host, "--network", &self.prefix];
        all.extend(["--network-alias", &host, "--ip", &ip, "--volume", &volume, &self.image]);
        all.extend(arguments.iter().map(String::as_str));
        docker(&all).await?;
        self.containers.push(name);
        Ok(())
    }

    /// `docker VERB`, for one container: `kill`, `start`, `restart`, `pause`, `unpause`.
    pub(crate) async fn tell(&self, verb: &str, number: usize) -> anyhow::Result<()> {
        docker(&[verb, &self.named(number)]).await.map(drop)
    }

    /// Takes a container off the network: nobody reaches it, and it reaches nobody.
    pub(crate) async fn cut_off(&self, number: usize) -> anyhow::Result<()> {
        docker(&["network", "disconnect", &self.prefix, &self.named(number)]).await.map(drop)
    }

    /// Takes it back, at its old address.
    pub(crate) async fn connect(&self, number: usize) -> anyhow::Result<()> {
        let (ip, host) = (self.ip(number), format!("n{number}"));
        docker(&["network", "connect", "--ip", &ip, "--alias", &host, &self.prefix, &self.named(number)])
            .await
            .map(drop)
    }

    /// Removes a container and its volume.
    pub(crate) async fn remove(&mut self, number: usize) -> anyhow::Result<()> {
        let name = self.named(number);
        docker(&["rm", "--force", &name]).await?;
        docker(&["volume", "rm", &name]).await?;
        self.containers.retain(|container| *container != name);
        Ok(())
    }

    /// Whether the container runs, and the code of its end if it does not.
    pub(crate) async fn exit_code(&self, number: usize) -> anyhow::Result<Option<i32>> {
        let format = "{{.State.Running}} {{.State.ExitCode}}";
        let state = docker(&["inspect", "--format", format, &self.named(number)]).await?;
        let (running, code) = state.split_once(' ').context("two words")?;
        Ok(if running == "true" { None } else { Some(code.parse()?) })
    }

    /// What the health check in the image says; "starting" until it was asked for the first time.
    pub(crate) async fn health(&self, number: usize) -> anyhow::Result<String> {
        docker(&["inspect", "--format", "{{.State.Health.Status}}", &self.named(number)]).await
    }

    /// The end of what a store wrote to its log.
    pub(crate) async fn log(&self, number: usize) -> String {
        let output =
            Command::new("docker").args(["logs", "--tail", "12", &self.named(number)]).output().await;
        output.map_or_else(|e| e.to_string(), |output| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let quiet = |arguments: &[&str]| {
            let mut command = std::process::Command::new("docker");
            // There is nothing to be done about what cannot be removed.
            let _ = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        };
        for name in &self.containers {
            quiet(&["rm", "--force", name]);
            quiet(&["volume", "rm", name]);
        }
        quiet(&["network", "rm", &self.prefix]);
    }
}

//! The power goes in the middle of pulls, removals and creates: every image is whole or absent, what was acknowledged is there, and the
//! node goes on.
//!
//! One run is recorded; POWER_CUTS moments of it (POWER_SEED chooses them) are each made a disk, on which a daemon starts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_tests::client::{Cri, build};
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::{Image, digest};
use cofferdam_tests::fixtures::layer::{Compression, Layer};
use cofferdam_tests::harness::{Node, eventually, leak};
use cofferdam_tests::powercut::{Disk, Journal, mount, unmount};
use cofferdam_tests::soak::Random;

/// Enough to see most kinds of moments.
const CUTS: u64 = 16;
const RECORDING: Duration = Duration::from_secs(8);

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// An image, and every file of every layer of it.
struct Known {
    reference: String,
    /// By the layer's folder: its files with their content.
    layers: Vec<(String, HashMap<String, Vec<u8>>)>,
}

/// When something of a name was asked for and when it was answered, in moments of the recording.
#[derive(Clone, Debug)]
struct Life {
    name: String,
    making: usize,
    made: usize,
    removing: usize,
    removed: usize,
}

impl Life {
    fn begin(name: &str, journal: &Journal) -> Self {
        let never = usize::MAX;
        Self { name: name.into(), making: journal.now(), made: never, removing: never, removed: never }
    }

    fn must_be(&self, moment: usize) -> bool {
        self.made <= moment && moment <= self.removing
    }

    fn may_be(&self, moment: usize) -> bool {
        self.making < moment && moment < self.removed
    }
}

/// The disk after a cut; kept for a person to look at when the test fails there.
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let to =
                Path::new("/tmp").join(format!("power{}", self.0.file_name().unwrap().to_string_lossy()));
            eprintln!("the disk is kept as {}: {:?}", to.display(), std::fs::copy(&self.0, &to));
        }
        let _ = std::fs::remove_file(&self.0);
    }
}

type Lives = Arc<Mutex<Vec<Life>>>;

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 64);
    let mut counter = u64::from(seed) << 32;
    while bytes.len() < length {
        bytes.extend_from_slice(digest(&counter.to_le_bytes()).as_bytes());
        counter += 1;
    }
    bytes.truncate(length);
    bytes
}

/// Images that share a layer, each with a layer of many small files and one big file.
fn images(node: &Node) -> Vec<Known> {
    let shared: HashMap<_, _> = (0..40).map(|n| (format!("s{n}"), noise(200, 100 + 97 * n))).collect();
    (0..3_u8)
        .map(|number| {
            let small: HashMap<_, _> =
                (0..150).map(|n| (format!("f{n}"), noise(number, 50 + 31 * n))).collect();
            let big = HashMap::from([("big".to_owned(), noise(100 + number, 3 << 20))]);
            let base = catalog::base_layer().unwrap();
            let mut image = Image::new().layer(base);
            let mut layers = Vec::new();
            for (files, how) in
                [(&shared, Compression::Gzip), (&small, Compression::Gzip), (&big, Compression::Plain)]
            {
                let mut names: Vec<_> = files.keys().collect();
                names.sort();
                let layer = names.iter().fold(Layer::new(), |layer, name| layer.file(name, &files[*name]));
                let diff_id = digest(&layer.tar().unwrap()).trim_start_matches("sha256:").to_owned();
                layers.push((diff_id, files.clone()));
                image = image.layer_as(layer, how);
            }
            let reference = node.registry.push(&format!("cut{number}"), "1", &image.build().unwrap());
            Known { reference, layers }
        })
        .collect()
}

/// Pulls and removes an image for as long as the recording goes.
async fn come_and_go(cri: Cri, name: String, journal: Arc<Journal>, lives: Lives, mut random: Random) {
    loop {
        let mut life = Life::begin(&name, &journal);
        lives.lock().unwrap().push(life.clone());
        cri.pull(&name, None).await.unwrap();
        life.made = journal.now();
        lives.lock().unwrap().last_mut_of(&life);
        tokio::time::sleep(random.millis(400)).await;
        life.removing = journal.now();
        lives.lock().unwrap().last_mut_of(&life);
        cri.remove_image(&name).await.unwrap();
        life.removed = journal.now();
        lives.lock().unwrap().last_mut_of(&life);
    }
}

/// The last life of the same name becomes this one.
trait Replace {
    fn last_mut_of(&mut self, life: &Life);
}

impl Replace for Vec<Life> {
    fn last_mut_of(&mut self, life: &Life) {
        let old = self.iter_mut().rev().find(|old| old.name == life.name);
        *old.expect("a life that did not begin") = life.clone();
    }
}

/// Makes pods with a container for as long as the recording goes, and removes them.
async fn run_pods(
    cri: Cri,
    configs: Vec<cofferdam_proto::cri::PodSandboxConfig>,
    image: String,
    journal: Arc<Journal>,
    lives: Lives,
) {
    for config in configs {
        let begun = journal.now();
        let pod = cri.run_pod(&config, "").await.unwrap();
        let mut life = Life { making: begun, ..Life::begin(&pod, &journal) };
        life.made = journal.now();
        lives.lock().unwrap().push(life.clone());
        let script = "echo here > /written; sleep 1000";
        let id = cri.create(&pod, &config, build::shell("main", &image, script)).await.unwrap();
        cri.start(&id).await.unwrap();
        life.removing = journal.now();
        lives.lock().unwrap().last_mut_of(&life);
        cri.destroy_pod(&pod).await.unwrap();
        life.removed = journal.now();
        lives.lock().unwrap().last_mut_of(&life);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_power_cut_every_image_is_whole_or_absent() {
    let seed = setting("POWER_SEED").unwrap_or_else(Random::seed);
    let mut random = Random::new(seed);
    let disk = Arc::new(Mutex::new(Disk::ext4(512)));
    let journal = disk.lock().unwrap().journal();
    let at = Arc::clone(&disk);
    let builder = Node::builder().place("root", move |root| at.lock().unwrap().mount(root));
    let Some(mut node) = builder.start().await else { return };
    let base = node.base_image().await;
    let known = images(&node);
    let (images, pods) = (Lives::default(), Lives::default());
    let mut work = tokio::task::JoinSet::new();
    for image in &known {
        let (lives, random) = (Arc::clone(&images), random.fork());
        let name = image.reference.clone();
        work.spawn(come_and_go(node.cri.clone(), name, Arc::clone(&journal), lives, random));
    }
    let configs = (0..200).map(|number| node.pod(&format!("p{number}"))).collect();
    work.spawn(run_pods(node.cri.clone(), configs, base, Arc::clone(&journal), Arc::clone(&pods)));
    tokio::time::sleep(RECORDING).await;
    // What happens from here on has later moments.
    let end = journal.now();
    let (images, pods) = (images.lock().unwrap().clone(), pods.lock().unwrap().clone());
    work.shutdown().await;
    let mut tape = disk.lock().unwrap().tape(end);
    let cuts = setting("POWER_CUTS").unwrap_or(CUTS) as usize;
    println!(
        "seed {seed}: {} entries, {} flushes, {} MiB, {} lives of images, {} of pods, {cuts} cuts",
        tape.len(),
        tape.flushes(),
        tape.bytes() >> 20,
        images.len(),
        pods.len()
    );
    // The rest is done on other disks: nothing of this run may live on, as nothing would.
    node.kill9();
    leak::sweep(node.dir(), &node.mark());
    disk.lock().unwrap().unmount();
    for (number, moment) in tape.moments(cuts, &mut random).into_iter().enumerate() {
        // Never the same file: the kernel lets go of the last one in its own time.
        let image = Kept(disk.lock().unwrap().folder().join(format!("cut-{seed}-{moment}-{number}")));
        tape.cut(moment, &image.0, &mut random).unwrap();
        let root = node.dir().join("root");
        mount(&image.0, &root);
        // The other half of a power cut: nothing in memory is left.
        std::fs::remove_dir_all(node.dir().join("state")).unwrap();
        node.restart().await;
        let wrong = examine(&node, &known, &images, &pods, moment, number % 8 == 0).await;
        assert!(wrong.is_empty(), "seed {seed}, cut at {moment}:\n{}", wrong.join("\n"));
        node.stop().await;
        leak::sweep(node.dir(), &node.mark());
        unmount(&root);
    }
}

/// What is wrong with a node that came up after a cut.
async fn examine(
    node: &Node,
    known: &[Known],
    images: &[Life],
    pods: &[Life],
    moment: usize,
    thorough: bool,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let root = node.dir().join("root");
    let aside = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.file_name());
    wrong.extend(
        aside.filter(|name| name.to_string_lossy().contains("damaged")).map(|name| format!("{name:?}")),
    );
    for image in known {
        let listed = node.cri.image_status(&image.reference).await.unwrap().is_some();
        let lives = || images.iter().filter(|life| life.name == image.reference);
        if !listed && lives().any(|life| life.must_be(moment)) {
            wrong.push(format!("{} was pulled before the cut and is not there", image.reference));
        }
        // A pull that was under way has no life in the list.
        let settled =
            lives().next_back().is_some_and(|last| moment < last.removed || last.removed == usize::MAX);
        if listed && settled && !lives().any(|life| life.may_be(moment)) {
            wrong.push(format!("{} was removed before the cut and is there", image.reference));
        }
        // At once, before anything else has been tidied up: nothing that a cut left may be taken for whole.
        if !listed && let Err(status) = node.cri.pull(&image.reference, None).await {
            wrong.push(format!("{} cannot be pulled: {status:?}", image.reference));
        }
        wrong.extend(incomplete(&root, image));
    }
    wrong.extend(altered_blobs(&root));
    let listed: Vec<String> = node.cri.list_pods(None).await.unwrap().into_iter().map(|pod| pod.id).collect();
    for life in pods.iter().filter(|life| life.must_be(moment) && !listed.contains(&life.name)) {
        wrong.push(format!("pod {} was made before the cut and is forgotten", life.name));
    }
    for pod in &listed {
        if let Err(status) = node.cri.destroy_pod(pod).await {
            wrong.push(format!("pod {pod} cannot be removed: {status:?}"));
        }
    }
    let mut left = Vec::new();
    let swept = eventually(Duration::from_secs(5), async || {
        left = leftovers(&root);
        left.is_empty()
    });
    if !swept.await {
        wrong.push(format!("left behind: {left:?}"));
    }
    if thorough {
        wrong.extend(pulls_again(node, known).await);
    }
    wrong
}

/// Files of an image's layers that are not what they should be.
fn incomplete(root: &Path, image: &Known) -> Vec<String> {
    let mut wrong = Vec::new();
    for (layer, files) in &image.layers {
        let folder = root.join("layers").join(layer).join("fs");
        for (name, content) in files {
            match std::fs::read(folder.join(name)) {
                Ok(found) if found == *content => {}
                Ok(found) => wrong.push(format!(
                    "{} {layer} {name}: other content, {} bytes of {}",
                    image.reference,
                    found.len(),
                    content.len()
                )),
                Err(error) => wrong.push(format!("{} {layer} {name}: {error}", image.reference)),
            }
        }
    }
    wrong
}

/// Blobs that do not have the digest that they are called by.
fn altered_blobs(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(root.join("content/blobs/sha256")).into_iter().flatten().flatten() {
        let has = digest(&std::fs::read(entry.path()).unwrap());
        let name = entry.file_name().to_string_lossy().into_owned();
        if has.trim_start_matches("sha256:") != name {
            wrong.push(format!("blob {name} has digest {has}"));
        }
    }
    wrong
}

/// What is half made, or belongs to a container that is gone.
fn leftovers(root: &Path) -> Vec<String> {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    };
    let mut left = [names("containers"), names("content/ingest")].concat();
    left.extend(names("layers").into_iter().filter(|path| path.contains("/tmp-")));
    left
}

/// Every image can be pulled, and a container sees all of it.
async fn pulls_again(node: &Node, known: &[Known]) -> Vec<String> {
    let mut wrong = Vec::new();
    let pod = node.run_pod(&node.pod("again")).await;
    for (number, image) in known.iter().enumerate() {
        if let Err(status) = node.cri.pull(&image.reference, None).await {
            wrong.push(format!("{}: {status:?}", image.reference));
            continue;
        }
        wrong.extend(incomplete(&node.dir().join("root"), image));
        let script = "sha256sum /big /f0 /f149 /s39";
        let config = build::shell(&format!("sees{number}"), &image.reference, script);
        let seen = node.output(&pod, config).await;
        let files: HashMap<&String, &Vec<u8>> = image.layers.iter().flat_map(|(_, files)| files).collect();
        for line in seen.lines() {
            let (sum, name) = line.split_once("  /").unwrap_or((line, ""));
            let wanted = files.get(&name.to_owned()).map(|content| digest(content));
            if wanted.as_deref().map(|wanted| wanted.trim_start_matches("sha256:")) != Some(sum) {
                wrong.push(format!("a container of {} sees {line}", image.reference));
            }
        }
        if seen.lines().count() != 4 {
            wrong.push(format!("a container of {} says {seen:?}", image.reference));
        }
    }
    node.destroy(&pod).await;
    wrong
}

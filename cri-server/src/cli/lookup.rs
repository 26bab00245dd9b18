//! Finds what a person means by a name, an id or the beginning of an id.
//!
//! Invariant: what may mean two things is an error that names both; nothing is guessed. A whole id comes before a name, a name
//! before the beginning of an id.

use cofferdam_proto::cri;

use super::client::Client;
use super::error::CliError;
use super::text::short_id;

/// Something that has an id.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Pod(cri::PodSandbox),
    Container(cri::Container),
    Image(cri::Image),
}

/// What one object is known by.
#[derive(Clone, Debug, Default)]
struct Known {
    id: String,
    names: Vec<String>,
    /// Attempts of one thing share it; the latest is meant.
    thing: String,
    attempt: u32,
}

/// Where in `known` that is, if it is there.
fn pick(wanted: &str, known: &[Known]) -> Result<Option<usize>, CliError> {
    let plain = |id: &str| id.strip_prefix("sha256:").unwrap_or(id).to_owned();
    let wanted_id = plain(wanted);
    if wanted_id.is_empty() {
        return Ok(None);
    }
    let named = |k: &Known| k.names.iter().any(|name| name == wanted);
    let tests: [&dyn Fn(&Known) -> bool; 3] =
        [&|k| plain(&k.id) == wanted_id, &named, &|k| plain(&k.id).starts_with(&wanted_id)];
    for test in tests {
        let found: Vec<usize> = (0..known.len()).filter(|n| test(&known[*n])).collect();
        let Some(first) = found.first() else { continue };
        let one_thing = found.iter().all(|n| known[*n].thing == known[*first].thing);
        if !one_thing {
            let candidates = found.iter().map(|n| describe(&known[*n])).collect();
            return Err(CliError::Ambiguous { wanted: wanted.to_owned(), candidates });
        }
        return Ok(found.into_iter().max_by_key(|n| known[*n].attempt));
    }
    Ok(None)
}

fn describe(known: &Known) -> String {
    let name = known.names.last().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("{}{name}", short_id(&known.id))
}

fn known_pod(pod: &cri::PodSandbox) -> Known {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let full = format!("{}/{}", metadata.namespace, metadata.name);
    Known {
        id: pod.id.clone(),
        thing: format!("{full}/{}", metadata.uid),
        names: vec![metadata.name, full],
        attempt: metadata.attempt,
    }
}

fn known_container(container: &cri::Container, pods: &[cri::PodSandbox]) -> Known {
    let metadata = container.metadata.clone().unwrap_or_default();
    let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id).and_then(|p| p.metadata.as_ref());
    let full = pod.map(|pod| format!("{}/{}", pod.name, metadata.name));
    Known {
        id: container.id.clone(),
        thing: format!("{}/{}", container.pod_sandbox_id, metadata.name),
        names: std::iter::once(metadata.name).chain(full).collect(),
        attempt: metadata.attempt,
    }
}

fn known_image(image: &cri::Image) -> Known {
    Known {
        id: image.id.clone(),
        names: image.repo_tags.iter().chain(&image.repo_digests).cloned().collect(),
        thing: image.id.clone(),
        attempt: 0,
    }
}

fn find_container_in(
    wanted: &str,
    pods: &[cri::PodSandbox],
    containers: &[cri::Container],
) -> Result<Option<usize>, CliError> {
    let known: Vec<Known> = containers.iter().map(|c| known_container(c, pods)).collect();
    pick(wanted, &known)
}

fn find_pod_in(wanted: &str, pods: &[cri::PodSandbox]) -> Result<Option<usize>, CliError> {
    pick(wanted, &pods.iter().map(known_pod).collect::<Vec<_>>())
}

/// The container; a pod's name or id will do where the pod has only one.
pub(super) async fn container(client: &mut Client, wanted: &str) -> Result<cri::Container, CliError> {
    let (pods, mut containers) = (client.pods().await?, client.containers().await?);
    // In a pod of the same name it is the only one, or the pod's name says nothing.
    if let Some(n) = find_container_in(wanted, &pods, &containers)? {
        return Ok(containers.swap_remove(n));
    }
    let missing = || CliError::NotFound { kind: "container", wanted: wanted.to_owned(), list: "ps -a" };
    let pod = &pods[find_pod_in(wanted, &pods)?.ok_or_else(missing)?];
    containers.retain(|container| container.pod_sandbox_id == pod.id);
    if containers.len() > 1 {
        let candidates = containers.iter().map(|c| describe(&known_container(c, &pods))).collect();
        return Err(CliError::Ambiguous { wanted: wanted.to_owned(), candidates });
    }
    containers.pop().ok_or_else(missing)
}

/// The pod's id.
pub(super) async fn pod(client: &mut Client, wanted: &str) -> Result<String, CliError> {
    let mut pods = client.pods().await?;
    let missing = || CliError::NotFound { kind: "pod", wanted: wanted.to_owned(), list: "pods" };
    let n = find_pod_in(wanted, &pods)?.ok_or_else(missing)?;
    Ok(pods.swap_remove(n).id)
}

/// The pod or container. A name that both have means the pod; `POD/CONTAINER` means the container.
pub(super) async fn pod_or_container(client: &mut Client, wanted: &str) -> Result<Object, CliError> {
    let (mut pods, mut containers) = (client.pods().await?, client.containers().await?);
    let pod = find_pod_in(wanted, &pods)?;
    let container = find_container_in(wanted, &pods, &containers)?;
    match (pod, container) {
        (Some(pod), Some(container)) => {
            let by_name = |known: Known| known.names.iter().any(|name| name == wanted);
            let pod_named = by_name(known_pod(&pods[pod]));
            let container_named = by_name(known_container(&containers[container], &pods));
            match (pod_named, container_named) {
                (true, _) => Ok(Object::Pod(pods.swap_remove(pod))),
                (false, true) => Ok(Object::Container(containers.swap_remove(container))),
                (false, false) => Err(CliError::Ambiguous {
                    wanted: wanted.to_owned(),
                    candidates: vec![
                        describe(&known_pod(&pods[pod])),
                        describe(&known_container(&containers[container], &pods)),
                    ],
                }),
            }
        }
        (Some(pod), None) => Ok(Object::Pod(pods.swap_remove(pod))),
        (None, Some(container)) => Ok(Object::Container(containers.swap_remove(container))),
        (None, None) => Err(CliError::NotFound {
            kind: "pod or container",
            wanted: wanted.to_owned(),
            list: "pods` or `cofferdam ps -a",
        }),
    }
}

/// The pod, container or image. What only an image is called, in any of the ways to write a reference, is the image.
pub(super) async fn anything(client: &mut Client, wanted: &str) -> Result<Object, CliError> {
    match pod_or_container(client, wanted).await {
        Err(CliError::NotFound { .. }) => {}
        found => return found,
    }
    let missing = || CliError::NotFound {
        kind: "pod, container or image",
        wanted: wanted.to_owned(),
        list: "pods`, `cofferdam ps -a` or `cofferdam images",
    };
    image(client, wanted).await?.map(Object::Image).ok_or_else(missing)
}

/// The image, if it is there.
pub(super) async fn image(client: &mut Client, wanted: &str) -> Result<Option<cri::Image>, CliError> {
    let mut images = client.all_images().await?;
    if let Some(n) = pick(wanted, &images.iter().map(known_image).collect::<Vec<_>>())? {
        return Ok(Some(images.swap_remove(n)));
    }
    // The daemon knows how short names are completed.
    let spec = cri::ImageSpec { image: wanted.to_owned(), ..Default::default() };
    let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
    Ok(client.images.image_status(request).await?.into_inner().image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(id: &str, name: &str, thing: &str, attempt: u32) -> Known {
        Known { id: id.to_owned(), names: vec![name.to_owned()], thing: thing.to_owned(), attempt }
    }

    #[test]
    fn an_id_comes_before_a_name_and_a_name_before_a_beginning() {
        let all = [known("abc", "x", "1", 0), known("def", "abc", "2", 0), known("ab1", "ab", "3", 0)];
        assert_eq!(pick("abc", &all).unwrap(), Some(0));
        assert_eq!(pick("ab", &all).unwrap(), Some(2));
        assert_eq!(pick("de", &all).unwrap(), Some(1));
        assert_eq!(pick("zz", &all).unwrap(), None);
        assert_eq!(pick("", &all).unwrap(), None);
    }

    #[test]
    fn what_may_mean_two_things_is_an_error_that_names_them() {
        let all = [known("abc", "x", "1", 0), known("abd", "y", "2", 0)];
        let text = pick("ab", &all).unwrap_err().to_string();
        assert!(text.contains("abc (x)") && text.contains("abd (y)"), "{text}");
    }

    #[test]
    fn of_several_attempts_the_latest_is_meant() {
        let all = [known("abc", "web", "pod/web", 1), known("def", "web", "pod/web", 2)];
        assert_eq!(pick("web", &all).unwrap(), Some(1));
    }

    #[test]
    fn an_images_id_may_be_written_without_its_algorithm() {
        let all = [known("sha256:abc", "r:1", "1", 0)];
        for wanted in ["sha256:abc", "abc", "sha256:a", "a", "r:1"] {
            assert_eq!(pick(wanted, &all).unwrap(), Some(0), "{wanted}");
        }
        assert_eq!(pick("sha256:", &all).unwrap(), None);
    }
}

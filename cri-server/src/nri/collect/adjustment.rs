//! The creation of a container as plugin after plugin adjusts it.

use std::collections::HashMap;

use cofferdam_proto::nri::{self, ContainerAdjustment, Field};

use super::resources::{self, Claim};
use super::{Owners, Updates, removal, variable};
use crate::nri::error::NriError;

/// A container being created, as the next plugin sees it, and what the plugins so far want.
#[derive(Debug)]
pub struct Creation {
    pub container: nri::Container,
    pub adjust: ContainerAdjustment,
    pub owners: Owners,
    pub updates: Updates,
}

impl Creation {
    #[must_use]
    pub fn new(container: nri::Container) -> Self {
        Self {
            container,
            adjust: ContainerAdjustment::default(),
            owners: Owners::default(),
            updates: Updates::default(),
        }
    }

    /// Adds the answer of `plugin`.
    ///
    /// # Errors
    /// When it contradicts itself or an earlier plugin.
    pub fn add(&mut self, plugin: &str, answer: nri::CreateContainerResponse) -> Result<(), NriError> {
        if let Some(adjust) = answer.adjust {
            self.adjust(plugin, adjust)?;
        }
        if answer.update.iter().any(|update| update.container_id == self.container.id) {
            let why = "it is being created: adjust it instead".to_owned();
            return Err(NriError::Invalid { plugin: plugin.to_owned(), what: "an update of the container", why });
        }
        self.updates.add(&mut self.owners, plugin, answer.update, answer.evict)
    }

    fn adjust(&mut self, plugin: &str, adjust: ContainerAdjustment) -> Result<(), NriError> {
        let mut step = Step { creation: self, plugin };
        step.map(Field::Annotations, adjust.annotations, |creation| {
            (&mut creation.adjust.annotations, Some(&mut creation.container.annotations))
        })?;
        step.mounts(adjust.mounts)?;
        step.env(adjust.env)?;
        step.args(adjust.args)?;
        step.hooks(adjust.hooks);
        step.rlimits(adjust.rlimits)?;
        step.cdi_devices(adjust.cdi_devices)?;
        adjust.linux.map_or(Ok(()), |linux| step.linux(linux))
    }
}

/// One plugin's turn.
struct Step<'a> {
    creation: &'a mut Creation,
    plugin: &'a str,
}

impl Step<'_> {
    fn claim(&mut self, field: Field, key: &str) -> Result<(), NriError> {
        let Creation { owners, container, .. } = &mut *self.creation;
        owners.claim(&container.id, field, key, self.plugin)
    }

    fn clear(&mut self, field: Field, key: &str) {
        let Creation { owners, container, .. } = &mut *self.creation;
        owners.clear(&container.id, field, key, self.plugin);
    }

    fn named(&self, what: &'static str, key: &str) -> Result<(), NriError> {
        if removal(key).0.is_empty() {
            let why = "it has no key".to_owned();
            return Err(NriError::Invalid { plugin: self.plugin.to_owned(), what, why });
        }
        Ok(())
    }

    fn linux_adjustment(&mut self) -> &mut nri::LinuxContainerAdjustment {
        self.creation.adjust.linux.get_or_insert_default()
    }

    fn linux_container(&mut self) -> &mut nri::LinuxContainer {
        self.creation.container.linux.get_or_insert_default()
    }

    /// A map whose removed keys begin with "-": into the adjustment, and into what the next plugin sees.
    fn map<V: Clone + Default>(
        &mut self,
        field: Field,
        wanted: HashMap<String, V>,
        maps: impl Fn(&mut Creation) -> (&mut HashMap<String, V>, Option<&mut HashMap<String, V>>),
    ) -> Result<(), NriError> {
        for key in wanted.keys() {
            self.named("an entry of a map", key)?;
        }
        for key in wanted.keys().filter_map(|key| key.strip_prefix('-')) {
            self.clear(field, key);
            let (adjust, shown) = maps(self.creation);
            adjust.remove(key);
            adjust.insert(format!("-{key}"), V::default());
            shown.map(|shown| shown.remove(key));
        }
        for (key, value) in wanted.into_iter().filter(|(key, _)| !removal(key).1) {
            self.claim(field, &key)?;
            let (adjust, shown) = maps(self.creation);
            shown.map(|shown| shown.insert(key.clone(), value.clone()));
            adjust.insert(key, value);
        }
        Ok(())
    }

    /// A list whose entries have a key: removed ones leave it, what is set takes the place of what was.
    fn list<E: Clone>(
        &mut self,
        field: Field,
        wanted: Vec<E>,
        key: impl Fn(&E) -> &str,
        lists: impl Fn(&mut Creation) -> (&mut Vec<E>, &mut Vec<E>),
    ) -> Result<(), NriError> {
        for entry in &wanted {
            self.named("an entry of a list", key(entry))?;
        }
        let same = |entry: &E, name: &str| removal(key(entry)).0 == name;
        for entry in wanted.iter().filter(|entry| removal(key(entry)).1) {
            let name = removal(key(entry)).0;
            self.clear(field, name);
            let (adjust, shown) = lists(self.creation);
            adjust.retain(|known| !same(known, name));
            shown.retain(|known| !same(known, name));
            adjust.push(entry.clone());
        }
        for entry in wanted.into_iter().filter(|entry| !removal(key(entry)).1) {
            let name = key(&entry).to_owned();
            self.claim(field, &name)?;
            let (adjust, shown) = lists(self.creation);
            // What was removed before is replaced now.
            adjust.retain(|known| !same(known, &name));
            shown.retain(|known| !same(known, &name));
            shown.push(entry.clone());
            adjust.push(entry);
        }
        Ok(())
    }

    fn mounts(&mut self, wanted: Vec<nri::Mount>) -> Result<(), NriError> {
        self.list(
            Field::Mounts,
            wanted,
            |mount| &mount.destination,
            |c| (&mut c.adjust.mounts, &mut c.container.mounts),
        )
    }

    fn env(&mut self, wanted: Vec<nri::KeyValue>) -> Result<(), NriError> {
        for entry in wanted {
            self.named("a variable", &entry.key)?;
            let (name, removed) = removal(&entry.key);
            if removed {
                self.clear(Field::Env, name);
            } else {
                self.claim(Field::Env, name)?;
            }
            let Creation { adjust, container, .. } = &mut *self.creation;
            container.env.retain(|known| variable(known) != name);
            if !removed {
                container.env.push(format!("{name}={}", entry.value));
            }
            adjust.env.retain(|known| removal(&known.key).0 != name);
            adjust.env.push(entry);
        }
        Ok(())
    }

    fn args(&mut self, mut args: Vec<String>) -> Result<(), NriError> {
        if args.is_empty() {
            return Ok(());
        }
        if args[0].is_empty() {
            self.clear(Field::Args, "");
            args.remove(0);
        }
        if args.is_empty() {
            self.creation.adjust.args.clear();
            return Ok(());
        }
        self.claim(Field::Args, "")?;
        self.creation.container.args.clone_from(&args);
        self.creation.adjust.args = args;
        Ok(())
    }

    fn hooks(&mut self, hooks: Option<nri::Hooks>) {
        let Some(hooks) = hooks else { return };
        if hooks == nri::Hooks::default() {
            return;
        }
        let Creation { owners, container, adjust, .. } = &mut *self.creation;
        owners.join(&container.id, Field::OciHooks, self.plugin);
        for into in [adjust.hooks.get_or_insert_default(), container.hooks.get_or_insert_default()] {
            into.prestart.extend(hooks.prestart.iter().cloned());
            into.create_runtime.extend(hooks.create_runtime.iter().cloned());
            into.create_container.extend(hooks.create_container.iter().cloned());
            into.start_container.extend(hooks.start_container.iter().cloned());
            into.poststart.extend(hooks.poststart.iter().cloned());
            into.poststop.extend(hooks.poststop.iter().cloned());
        }
    }

    fn rlimits(&mut self, wanted: Vec<nri::PosixRlimit>) -> Result<(), NriError> {
        for limit in wanted {
            self.claim(Field::Rlimits, &limit.r#type)?;
            let Creation { adjust, container, .. } = &mut *self.creation;
            container.rlimits.retain(|known| known.r#type != limit.r#type);
            container.rlimits.push(limit.clone());
            adjust.rlimits.push(limit);
        }
        Ok(())
    }

    fn cdi_devices(&mut self, wanted: Vec<nri::CdiDevice>) -> Result<(), NriError> {
        for device in wanted {
            self.named("a CDI device", &device.name)?;
            self.claim(Field::CdiDevices, &device.name)?;
            self.creation.adjust.cdi_devices.push(device);
        }
        Ok(())
    }

    fn linux(&mut self, wanted: nri::LinuxContainerAdjustment) -> Result<(), NriError> {
        self.list(
            Field::Devices,
            wanted.devices,
            |device| &device.path,
            |c| {
                let shown = &mut c.container.linux.get_or_insert_default().devices;
                (&mut c.adjust.linux.get_or_insert_default().devices, shown)
            },
        )?;
        if let Some(wanted) = &wanted.resources {
            self.resources(wanted)?;
        }
        self.list(
            Field::Namespace,
            wanted.namespaces,
            |namespace| &namespace.r#type,
            |c| {
                let shown = &mut c.container.linux.get_or_insert_default().namespaces;
                (&mut c.adjust.linux.get_or_insert_default().namespaces, shown)
            },
        )?;
        self.map(Field::Sysctl, wanted.sysctl, |c| {
            let shown = &mut c.container.linux.get_or_insert_default().sysctl;
            (&mut c.adjust.linux.get_or_insert_default().sysctl, Some(shown))
        })?;
        self.map(Field::LinuxNetDevices, wanted.net_devices, |c| {
            let shown = &mut c.container.linux.get_or_insert_default().net_devices;
            (&mut c.adjust.linux.get_or_insert_default().net_devices, Some(shown))
        })?;
        self.rdt(wanted.rdt)?;
        if !wanted.cgroups_path.is_empty() {
            self.claim(Field::CgroupsPath, "")?;
            self.linux_container().cgroups_path.clone_from(&wanted.cgroups_path);
            self.linux_adjustment().cgroups_path = wanted.cgroups_path;
        }
        if wanted.oom_score_adj.is_some() {
            self.claim(Field::OomScoreAdj, "")?;
            self.linux_container().oom_score_adj = wanted.oom_score_adj;
            self.linux_adjustment().oom_score_adj = wanted.oom_score_adj;
        }
        if wanted.io_priority.is_some() {
            self.claim(Field::IoPriority, "")?;
            self.linux_container().io_priority = wanted.io_priority;
            self.linux_adjustment().io_priority = wanted.io_priority;
        }
        if wanted.seccomp_policy.is_some() {
            self.claim(Field::SeccompPolicy, "")?;
            self.linux_container().seccomp_policy.clone_from(&wanted.seccomp_policy);
            self.linux_adjustment().seccomp_policy = wanted.seccomp_policy;
        }
        if wanted.scheduler.is_some() {
            self.claim(Field::LinuxSched, "")?;
            self.linux_container().scheduler.clone_from(&wanted.scheduler);
            self.linux_adjustment().scheduler = wanted.scheduler;
        }
        if wanted.memory_policy.is_some() {
            self.claim(Field::MemoryPolicy, "")?;
            self.linux_adjustment().memory_policy = wanted.memory_policy;
        }
        Ok(())
    }

    fn resources(&mut self, wanted: &nri::LinuxResources) -> Result<(), NriError> {
        let Creation { owners, container, adjust, .. } = &mut *self.creation;
        let linux = adjust.linux.get_or_insert_default();
        let mut claim = Claim { owners, container: &container.id, plugin: self.plugin };
        resources::merge(&mut claim, wanted, linux.resources.get_or_insert_default())?;
        // The same again for the eyes of the next plugin.
        let shown = container.linux.get_or_insert_default().resources.get_or_insert_default();
        resources::overlay(wanted, shown);
        Ok(())
    }

    fn rdt(&mut self, wanted: Option<nri::LinuxRdt>) -> Result<(), NriError> {
        let Some(wanted) = wanted else { return Ok(()) };
        let fields = [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring];
        if wanted.remove {
            fields.into_iter().for_each(|field| self.clear(field, ""));
            self.linux_adjustment().rdt = Some(nri::LinuxRdt { remove: true, ..Default::default() });
        }
        let set = [wanted.clos_id.is_some(), wanted.schemata.is_some(), wanted.enable_monitoring.is_some()];
        for (field, _) in fields.into_iter().zip(set).filter(|(_, set)| *set) {
            self.claim(field, "")?;
        }
        let rdt = self.linux_adjustment().rdt.get_or_insert_default();
        rdt.clos_id = wanted.clos_id.or(rdt.clos_id.take());
        rdt.schemata = wanted.schemata.or(rdt.schemata.take());
        rdt.enable_monitoring = wanted.enable_monitoring.or(rdt.enable_monitoring.take());
        Ok(())
    }
}

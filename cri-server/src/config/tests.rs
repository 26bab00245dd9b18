//! What the configuration accepts and refuses.

use super::*;

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn load(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).map_err(|e| e.to_string())?;
    Config::load(Some(&path), &Overrides::default()).map_err(|e| e.to_string())
}

#[test]
fn the_defaults_written_out_are_a_configuration() -> TestResult {
    load(&Config::default_text()?)?;
    Ok(())
}

#[test]
fn every_key_of_the_contract_is_known() -> TestResult {
    let config = load(
        r#"
        root = "/r"
        state = "/s"
        socket = "/s/c.sock"
        default_runtime = "runc"
        [image]
        registry_config = "/certs"
        [network]
        conf_dir = "/net.d"
        bin_dirs = ["/bin"]
        subnets = ["10.1.0.0/16"]
        bridge = "b0"
        [streaming]
        address = "127.0.0.1:0"
        [nri]
        socket = ""
        plugin_path = "/plugins"
        plugin_config_path = "/conf.d"
        registration_timeout = 5
        request_timeout = 0.5
        [nri.default_validator]
        enable = true
        required_plugins = ["10-a"]
        [metrics]
        address = ""
        [runtimes.cofferdam]
        type = "io.containerd.cofferdam.v1"
        [runtimes.vm]
        type = "io.containerd.cofferdam.v1"
        isolation = "vm"
        [runtimes.runc]
        path = "/usr/bin/containerd-shim-runc-v2"
        "#,
    )?;
    assert_eq!(config.default_runtime, "runc");
    assert_eq!(config.runtimes.len(), 3);
    assert_eq!(config.nri.request(), std::time::Duration::from_millis(500));
    Ok(())
}

#[test]
fn unknown_keys_name_the_nearest_right_ones_all_at_once() {
    let error =
        load("rot = \"/x\"\n[image]\nregistry_confg = \"/y\"\n[runtimes.a]\npth = \"/z\"\n[runtimes.a.vm]\nmemroy = 1\n").unwrap_err();
    for part in [
        "\"rot\"; did you mean \"root\"",
        "\"image.registry_config\"",
        "\"runtimes.a.path\"",
        "\"runtimes.a.vm.memory\"",
    ] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

#[test]
fn wrong_values_are_told_with_their_keys() {
    let error =
        load("root = \"here\"\ndefault_runtime = \"nosuch\"\n[cdi]\nspec_dirs = [\"x\"]\n").unwrap_err();
    assert!(error.contains("cdi.spec_dirs: x is not an absolute path"), "{error}");
    assert!(error.contains("root: here is not an absolute path"), "{error}");
    assert!(error.contains("no runtime \"nosuch\""), "{error}");
    assert!(load("[nri]\nrequest_timeout = -1\n").unwrap_err().contains("nri.request_timeout"));
    assert!(load("[nri]\nsocket = \"here\"\n").unwrap_err().contains("nri.socket"));
    assert!(load("root = 7").unwrap_err().contains("root"));
    assert!(load("root = ").is_err());
}

#[test]
fn drop_ins_win_over_the_main_file() -> TestResult {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("config.toml");
    std::fs::write(&path, "root = \"/a\"\n[network]\nbridge = \"one\"\n")?;
    std::fs::create_dir(dir.path().join("conf.d"))?;
    std::fs::write(dir.path().join("conf.d/10.toml"), "[network]\nbridge = \"two\"\n")?;
    std::fs::write(dir.path().join("conf.d/ignored.txt"), "not toml")?;
    let overrides = Overrides { state: Some("/elsewhere".into()), ..Overrides::default() };
    let config = Config::load(Some(&path), &overrides)?;
    assert_eq!((config.root.as_path(), config.network.bridge.as_str()), (Path::new("/a"), "two"));
    assert_eq!(config.socket, Path::new("/elsewhere/cofferdam.sock"));
    assert_eq!(config.nri.socket, "/elsewhere/nri.sock");
    Ok(())
}

//! Random work for a while, with a look at everything after each round. SOAK_SECONDS says how long, SOAK_SEED what (see
//! `make soak`).

use std::time::Duration;

use cofferdam_tests::soak::{Random, Soak};

/// Long enough to see that it works.
const SECONDS: u64 = 60;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[tokio::test]
async fn a_node_at_work_keeps_its_books_and_leaves_nothing() {
    let seed = setting("SOAK_SEED").unwrap_or_else(Random::seed);
    Soak::run(seed, Duration::from_secs(setting("SOAK_SECONDS").unwrap_or(SECONDS))).await;
}

//! What a pager did, for people and for machines.

use indicatif::BinaryBytes;
use serde_json::{Value, json};
use squib_host::pager::{Latency, PagerStats};

use crate::report::micros;

const PAGE: u64 = 16 << 10;

/// The counters as one JSON object: the event `pager`.
pub fn event(stats: &PagerStats) -> Value {
    let latency = |latency: &Latency| {
        let buckets =
            latency.spread.buckets().map(|(to, count)| json!({"to_us": to.as_micros() as u64, "count": count}));
        json!({
            "count": latency.count,
            "median_us": latency.median.as_secs_f64() * 1e6,
            "p99_us": latency.p99.as_secs_f64() * 1e6,
            "max_us": latency.max.as_secs_f64() * 1e6,
            "histogram": buckets.collect::<Vec<_>>(),
        })
    };
    json!({
        "event": "pager",
        "page_bytes": PAGE,
        "pages": {"total": stats.pages_total, "missing": stats.pages_missing, "lost": stats.pages_lost},
        "faults": {
            "guest_data": stats.faults_guest_data,
            "guest_fetch": stats.faults_guest_fetch,
            "guest_walk": stats.faults_guest_walk,
            "host": stats.faults_host,
            "exception": stats.faults_exception,
        },
        "origin": {"zero": stats.pages_zero, "file": stats.pages_file, "server": stats.pages_server},
        "bytes_fetched": stats.bytes_fetched,
        "demanded": stats.pages_demanded,
        "around": stats.pages_around,
        "prefetch": {
            "pages": stats.pages_prefetched,
            "hits": stats.prefetch_hits,
            "untouched": stats.prefetch_untouched,
        },
        "guest_latency": latency(&stats.guest_latency),
        "host_latency": latency(&stats.host_latency),
    })
}

/// The counters as a table for a person.
pub fn table(stats: &PagerStats) -> String {
    let latency = |l: &Latency| match l.count {
        0 => "-".to_owned(),
        n => format!("{n}: median {} us, 99 % {} us, longest {} us", micros(l.median), micros(l.p99), micros(l.max)),
    };
    let spread = |l: &Latency| {
        let buckets: Vec<_> = l.spread.buckets().map(|(to, count)| format!("{} us: {count}", to.as_micros())).collect();
        if buckets.is_empty() { "-".to_owned() } else { format!("up to {}", buckets.join(", ")) }
    };
    let bytes = |pages: u64| BinaryBytes(pages * PAGE);
    let rows = [
        (
            "RAM",
            format!(
                "{}, {} of it still absent, {} pages lost",
                bytes(stats.pages_total),
                bytes(stats.pages_missing),
                stats.pages_lost
            ),
        ),
        (
            "faults",
            format!(
                "{} guest data, {} guest fetch, {} guest walk, {} host, {} exception",
                stats.faults_guest_data,
                stats.faults_guest_fetch,
                stats.faults_guest_walk,
                stats.faults_host,
                stats.faults_exception
            ),
        ),
        (
            "pages of 16 KiB",
            format!("{} zero, {} from files, {} from a server", stats.pages_zero, stats.pages_file, stats.pages_server),
        ),
        ("fetched", format!("{} for {} pages needed", BinaryBytes(stats.bytes_fetched), stats.pages_demanded)),
        (
            "prefetched",
            format!(
                "{} pages: {} needed later, {} not needed before streaming was over; {} more opened with a neighbour",
                stats.pages_prefetched, stats.prefetch_hits, stats.prefetch_untouched, stats.pages_around
            ),
        ),
        ("guest faults", latency(&stats.guest_latency)),
        ("  spread", spread(&stats.guest_latency)),
        ("host faults", latency(&stats.host_latency)),
        ("  spread", spread(&stats.host_latency)),
    ];
    rows.map(|(label, text)| format!("  {label:<16}{text}\n")).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_and_the_event_say_the_same() {
        let stats = PagerStats { pages_total: 16384, pages_file: 77, faults_guest_walk: 5, ..PagerStats::default() };
        let (table, event) = (table(&stats), event(&stats));
        assert!(table.contains("256.00 MiB") && table.contains("77 from files") && table.contains("5 guest walk"));
        assert_eq!((&event["origin"]["file"], &event["faults"]["guest_walk"]), (&json!(77), &json!(5)));
    }
}

//! A strict parser of Prometheus' text format 0.0.4. It also reports faults that a scraper would ignore.

use std::collections::BTreeMap;

/// The values of a scrape by series, as `name{label="value"}` with the labels sorted by name.
#[derive(Debug)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Parses the whole text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut scrape = Self(BTreeMap::new());
        let mut seen = Vec::new();
        let body = text.strip_suffix('\n').ok_or("the last line does not end")?;
        let mut lines = body.split('\n').peekable();
        while let Some(line) = lines.next() {
            let wrong = |what: &str| format!("{what}: {line}");
            let help = line.strip_prefix("# HELP ").ok_or_else(|| wrong("no HELP before a number"))?;
            let (name, words) = help.split_once(' ').ok_or_else(|| wrong("HELP without words"))?;
            if !is_valid_name(name, true)
                || words.trim() != words
                || words.contains('\\')
                || seen.contains(&name)
            {
                return Err(wrong("HELP"));
            }
            seen.push(name);
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name));
            let kind = kind.ok_or_else(|| wrong("no TYPE behind its HELP"))?.trim_start();
            let mut family = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                family.push(Sample::parse(line)?);
            }
            match kind {
                "counter" if !name.ends_with("_total") => return Err(wrong("a counter that is no total")),
                "counter" | "gauge" if family.iter().any(|sample| sample.name != name) => {
                    return Err(wrong("another number among its numbers"));
                }
                "counter" if family.iter().any(|sample| sample.value < 0.0) => return Err(wrong("below 0")),
                "counter" | "gauge" => {}
                "histogram" => check_histogram(name, &family)?,
                _ => return Err(wrong("of an unknown type")),
            }
            if family.is_empty() {
                return Err(wrong("without a number"));
            }
            for sample in family {
                let series = sample.series();
                if scrape.0.insert(series.clone(), sample.value).is_some() {
                    return Err(format!("twice: {series}"));
                }
            }
        }
        Ok(scrape)
    }

    /// The value of a series.
    pub(crate) fn value(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// All values, by series.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(series, value)| (series.as_str(), *value))
    }
}

/// A line with a value.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Sample {
    fn parse(line: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{what}: {line}");
        let end = line.find(['{', ' ']).ok_or_else(|| wrong("no number"))?;
        let (name, mut rest) = line.split_at(end);
        if !is_valid_name(name, true) {
            return Err(wrong("a name that is none"));
        }
        let mut labels = BTreeMap::new();
        if let Some(mut inside) = rest.strip_prefix('{') {
            loop {
                let (label, behind) =
                    inside.split_once("=\"").ok_or_else(|| wrong("a label without a value"))?;
                let (value, behind) =
                    parse_quoted(behind).ok_or_else(|| wrong("a value that does not end"))?;
                if !is_valid_name(label, false) || labels.insert(label.to_owned(), value).is_some() {
                    return Err(wrong("a label that is none, or comes twice"));
                }
                if let Some(behind) = behind.strip_prefix('}') {
                    rest = behind;
                    break;
                }
                inside = behind.strip_prefix(',').ok_or_else(|| wrong("labels without a comma"))?;
            }
        }
        let number = rest.strip_prefix(' ').ok_or_else(|| wrong("no space before the number"))?;
        // A timestamp after the value is refused too.
        let value = number.parse().map_err(|_| wrong("no number"))?;
        Ok(Self { name: name.to_owned(), labels, value })
    }

    fn series(&self) -> String {
        if self.labels.is_empty() {
            return self.name.clone();
        }
        let labels: Vec<String> =
            self.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        format!("{}{{{}}}", self.name, labels.join(","))
    }
}

/// A value up to its closing quote, and the text after the quote.
fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.char_indices();
    loop {
        match rest.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match rest.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            (_, plain) => value.push(plain),
        }
    }
}

fn is_valid_name(text: &str, colons: bool) -> bool {
    let may_be = |c: char| c.is_ascii_alphanumeric() || c == '_' || colons && c == ':';
    text.chars().all(may_be) && text.starts_with(|c: char| !c.is_ascii_digit())
}

/// Checks a histogram: the buckets are in order and do not decrease, and the last one is +Inf. Then follow the sum
/// and the count.
fn check_histogram(name: &str, family: &[Sample]) -> Result<(), String> {
    let mut samples = family.iter().peekable();
    while samples.peek().is_some() {
        let (mut bound, mut within, mut labels) = (f64::NEG_INFINITY, 0.0, None);
        while let Some(bucket) = samples.next_if(|sample| sample.name == format!("{name}_bucket")) {
            let mut others = bucket.labels.clone();
            let le = others.remove("le").and_then(|le| le.parse().ok()).ok_or("a bucket without a bound")?;
            if le <= bound || bucket.value < within || labels.as_ref().is_some_and(|labels| *labels != others)
            {
                return Err(format!("a bucket out of order: {bucket:?}"));
            }
            (bound, within, labels) = (le, bucket.value, Some(others));
        }
        let labels = labels.ok_or("no buckets")?;
        let mut behind = |suffix: &str| {
            let is_next =
                |sample: &&Sample| sample.name == format!("{name}{suffix}") && sample.labels == labels;
            samples.next_if(is_next).map(|sample| sample.value).ok_or(format!("no {name}{suffix}"))
        };
        let (sum, count) = (behind("_sum")?, behind("_count")?);
        if bound != f64::INFINITY || within != count || sum < 0.0 {
            return Err(format!("{name}: {within} within {bound}, of {count} in all"));
        }
    }
    Ok(())
}

//! Converts times of the guest's local clock to UTC, with the time zone that localtime(5) describes.

use time::{OffsetDateTime, PrimitiveDateTime};
use tz::{DateTime, TimeZone};

/// The guest's time zone.
#[derive(Debug)]
pub struct LocalTimeZone(TimeZone);

impl LocalTimeZone {
    /// Parses the zone from the content of /etc/localtime. If there is no such file, the zone is UTC (localtime(5)).
    ///
    /// # Errors
    /// If the content is not a time zone.
    pub fn from_localtime(localtime: Option<&[u8]>) -> Result<Self, String> {
        match localtime {
            None => Ok(Self(TimeZone::utc())),
            Some(content) => TimeZone::from_tz_data(content)
                .map(Self)
                .map_err(|_| "it is no time zone of tzfile(5)".to_owned()),
        }
    }

    /// The moment at which local clocks show this time. `None` if they show it twice or never, because the clock is
    /// set back or forward. mktime(3) would silently choose one moment.
    pub fn to_utc(&self, shown: PrimitiveDateTime) -> Option<OffsetDateTime> {
        let (date, time) = (shown.date(), shown.time());
        let found = DateTime::find(
            date.year(),
            date.month().into(),
            date.day(),
            time.hour(),
            time.minute(),
            time.second(),
            0,
            self.0.as_ref(),
        );
        OffsetDateTime::from_unix_timestamp(found.ok()?.unique()?.unix_time()).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use time::{Date, Month, Time};

    use super::*;

    /// A file of tzfile(5) without transitions, with one rule that always applies.
    fn zone_from_rule(rule: &str) -> LocalTimeZone {
        let header = |version: &[u8]| {
            let counts = [0u32, 0, 0, 0, 1, 4].map(u32::to_be_bytes).concat();
            [b"TZif", version, &[0; 15], &counts, &[0; 6], b"LMT\0"].concat()
        };
        let file = [header(b"2"), header(b"2"), format!("\n{rule}\n").into_bytes()].concat();
        LocalTimeZone::from_localtime(Some(&file)).unwrap()
    }

    fn wall_clock(month: Month, day: u8, hour: u8, minute: u8) -> PrimitiveDateTime {
        let date = Date::from_calendar_date(2030, month, day).unwrap();
        PrimitiveDateTime::new(date, Time::from_hms(hour, minute, 0).unwrap())
    }

    #[test]
    fn daylight_saving_time_is_applied() {
        let berlin = zone_from_rule("CET-1CEST,M3.5.0,M10.5.0/3");
        for (month, hour_in_utc) in [(Month::January, 11), (Month::July, 10), (Month::December, 11)] {
            let utc = wall_clock(month, 15, hour_in_utc, 30).assume_utc();
            assert_eq!(berlin.to_utc(wall_clock(month, 15, 12, 30)), Some(utc), "{month}");
        }
    }

    #[test]
    fn local_time_ambiguous_or_skipped_is_none() {
        let berlin = zone_from_rule("CET-1CEST,M3.5.0,M10.5.0/3");
        assert_eq!(berlin.to_utc(wall_clock(Month::October, 27, 2, 30)), None);
        assert_eq!(berlin.to_utc(wall_clock(Month::March, 31, 2, 30)), None);
    }

    #[test]
    fn localtime_missing_is_utc_and_garbage_is_an_error() {
        let noon = wall_clock(Month::July, 15, 12, 0);
        assert_eq!(LocalTimeZone::from_localtime(None).unwrap().to_utc(noon), Some(noon.assume_utc()));
        assert!(LocalTimeZone::from_localtime(Some(b"")).is_err());
        assert!(LocalTimeZone::from_localtime(Some(b"TZif2")).is_err());
    }
}

-- When each row arrived, one value per transaction: what was recorded later did not exist as of an earlier instant.
-- Rows that are already there count as recorded now.

alter table market_data add column recorded_at timestamptz not null default now();

comment on column market_data.recorded_at is 'When the row arrived (start of its transaction); filled in';

create or replace view market_data_latest as
    select distinct on (symbol, timeframe, time) *
    from market_data
    order by symbol, timeframe, time, known_at desc;

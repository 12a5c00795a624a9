-- A server's clock may be set back; what arrives afterwards is still recorded after what was there before. Otherwise a
-- correction would look older than the bar it corrects, and history would say that the first version never was.
create or replace function market_data_recorded_at() returns timestamptz
language plpgsql set search_path from current as $$
begin
    if coalesce(current_setting('mt5_crs.recorded_at', true), '') = '' then
        perform set_config('mt5_crs.recorded_at',
            to_char(
                greatest(
                    clock_timestamp(),
                    -- The newest transaction is found through its index; the column's own would burden every insert.
                    (select recorded_at + interval '1 microsecond' from market_data order by recorded_by desc limit 1)
                ) at time zone 'UTC',
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'
            ),
            true);
    end if;
    return current_setting('mt5_crs.recorded_at')::timestamptz;
end
$$;

comment on table alert is 'Alerts that somebody took, by what they were about; append-only';

import type { Place } from "../model/answer";

const PLACES: { place: Place; name: string }[] = [
  { place: "server", name: "Server" },
  { place: "browser", name: "This browser" },
];

/** Where the network runs. Radio buttons, so arrow keys and screen readers work as everywhere. */
export function PlaceSwitch({ place, onChange }: { place: Place; onChange: (place: Place) => void }) {
  return (
    <fieldset className="switch">
      <legend>Run the network on</legend>
      <div>
        {PLACES.map(({ place: value, name }) => (
          <label key={value}>
            <input
              type="radio"
              name="place"
              value={value}
              checked={place === value}
              onChange={() => onChange(value)}
            />
            <span>{name}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}

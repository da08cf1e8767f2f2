/** The few signs of the page, drawn on a grid of 24: fonts don't have them everywhere. */
const SIGNS = {
  swap: 'M4 8h14m-4-4 4 4-4 4M20 16H6m4-4-4 4 4 4',
  lock: 'M6 11h12v9H6zM9 11V7a3 3 0 0 1 6 0v4',
  dice: 'M4 4h16v16H4zM8.5 8.5v.01M15.5 8.5v.01M12 12v.01M8.5 15.5v.01M15.5 15.5v.01',
  more: 'M5 12v.01M12 12v.01M19 12v.01',
  close: 'M6 6l12 12M18 6 6 18',
}

export function Icon({ name }: { name: keyof typeof SIGNS }) {
  return (
    <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true" class="icon">
      <path d={SIGNS[name]} fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" />
    </svg>
  )
}

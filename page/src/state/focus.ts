/** Focus is never lost: where what had it is taken away, or can't have it any more, something near has it. */

const CAN = 'a[href], button:not(:disabled), input:not(:disabled), select, textarea, summary, [tabindex]:not([tabindex="-1"])'

let last: Element | null = null
let path: Element[] = [] // its ancestors, the nearest first
let before: Element | null = null // what had the focus before a dialog was opened

function remember(event: FocusEvent): void {
  const now = event.target as Element
  const dialog = now.closest('dialog')
  if (dialog && last && !dialog.contains(last)) before = last
  last = now
  path = []
  for (let one = now.parentElement; one && one !== document.body; one = one.parentElement) path.push(one)
}

function restore(): void {
  if (!last || document.activeElement !== document.body) return
  if (last.isConnected && !last.matches(':disabled') && last.checkVisibility()) return // somebody clicked beside it
  const open = [...document.querySelectorAll('dialog[open]')].pop()
  const fromDialog = path.some((one) => one.tagName === 'DIALOG' && !one.isConnected)
  last = null
  if (fromDialog && !open && before?.isConnected) return (before as HTMLElement).focus()
  const near = path.find((one) => one.isConnected && one.checkVisibility() && (!open || open.contains(one)) && one.querySelector(CAN))
  const within = near && near.id !== 'page' ? near : (open ?? document.querySelector('main'))
  const target = within?.matches('main') ? within : within?.querySelector(CAN)
  ;(target as HTMLElement | undefined)?.focus({ preventScroll: true })
}

export function keepFocus(): void {
  document.addEventListener('focusin', remember)
  new MutationObserver(() => queueMicrotask(restore)).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ['disabled', 'open'] })
}

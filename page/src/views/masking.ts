import { signal } from '@preact/signals'

/** The mask editor is open. */
export const masking = signal(false)
/** The picture that the next ones are compared with. */
export const aside = signal<string | null>(null)
